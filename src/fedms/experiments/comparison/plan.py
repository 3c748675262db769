"""The order of a comparison's runs, in which no first stage is trained twice."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fedms.config import Config, load_config
from fedms.experiments.first_stage import first_stage_settings, shared_first_stage
from fedms.federation.method import Stage
from fedms.federation.methods import METHODS, find


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison."""

    folder: str
    """Path inside the comparison's folder."""
    label: str
    config: Config
    first: str | None = None
    """Folder of the run that provides the first stage."""
    hidden: bool = False
    """Whether the run is not a row and only trains a first stage for others."""


@dataclass(frozen=True)
class Origin:
    """Everything that determines the result of a first stage."""

    stage: Stage
    settings: str


def plan(wanted: Sequence[PlannedRun]) -> list[PlannedRun]:
    """These runs, each after the run that provides its first stage.

    Runs with the same first stage take it from the run that consists of this stage alone. If there is no such
    run and several runs need the stage, a hidden run of a method with this stage alone is added.
    """
    origins = {run.folder: origin(run.config) for run in wanted}
    makers: dict[Origin, PlannedRun] = {}
    needy: dict[Origin, list[PlannedRun]] = defaultdict(list)
    for run in wanted:
        if made := origins[run.folder]:
            if len(find(run.config.method).stages) == 1:
                makers.setdefault(made, run)
            needy[made].append(run)
    for made, runs in needy.items():
        if made not in makers and len(runs) > 1 and (hidden := _hidden(made, runs)):
            makers[made] = hidden
    ordered: dict[str, PlannedRun] = {}
    for run in wanted:
        made = origins[run.folder]
        maker = makers.get(made) if made else None
        if maker and maker.folder != run.folder:
            ordered.setdefault(maker.folder, maker)
            run = replace(run, first=maker.folder)
        ordered.setdefault(run.folder, run)
    return list(ordered.values())


def origin(config: Config) -> Origin | None:
    """The origin of the run's first stage, or None if no other run can train this stage."""
    stage = shared_first_stage(config)
    return Origin(stage, json.dumps(first_stage_settings(config), sort_keys=True)) if stage else None


def _hidden(made: Origin, runs: Iterable[PlannedRun]) -> PlannedRun | None:
    """A hidden run of this stage alone.

    Keys without effect on the stage have their defaults, so that later rows can also use the run.
    """
    method = next((method.name for method in METHODS.values() if method.stages == (made.stage,)), None)
    if method is None:
        return None
    config = next(iter(runs)).config
    values = (
        first_stage_settings(config) | config.model_dump(include={"engine", "cache"}) | {"method": method}
    )
    values["evaluation"] |= {"everyone": 1, "validation": False}  # no one reads the test results of this run
    names = dict.fromkeys(run.label.rpartition(", seed")[0] for run in runs)
    digest = hashlib.sha256(made.settings.encode()).hexdigest()[:8]
    return PlannedRun(
        folder=f"stages/{method}-{config.seed}-{digest}",
        label=f"first stage of {', '.join(names)}, seed {config.seed}",
        config=load_config(values),
        hidden=True,
    )
