"""The runs of a comparison in their order, with no first stage trained twice."""

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
    """Below the comparison's folder."""
    label: str
    config: Config
    first: str | None = None
    """The folder of the run that has trained its first stage."""
    hidden: bool = False
    """Whether it is no row, but trains a first stage for others."""


@dataclass(frozen=True)
class Origin:
    """All that decides what a first stage comes to."""

    stage: Stage
    settings: str


def plan(wanted: Sequence[PlannedRun]) -> list[PlannedRun]:
    """These runs, each after the one whose first stage it takes over.

    Runs that declare a first stage alike take it from the one that consists of that stage alone. Where none does and several need
    it, a hidden run of a method that does is added.
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
    """What the run's first stage comes from, or None where no other run could train it."""
    stage = shared_first_stage(config)
    return Origin(stage, json.dumps(first_stage_settings(config), sort_keys=True)) if stage else None


def _hidden(made: Origin, runs: Iterable[PlannedRun]) -> PlannedRun | None:
    """A run of this stage alone. What is of no concern to it is left at its default, so that it serves whoever comes later."""
    method = next((method.name for method in METHODS.values() if method.stages == (made.stage,)), None)
    if method is None:
        return None
    config = next(iter(runs)).config
    values = (
        first_stage_settings(config) | config.model_dump(include={"engine", "cache"}) | {"method": method}
    )
    values["evaluation"] |= {"everyone": 1, "validation": False}  # nobody reads how it does in the end
    digest = hashlib.sha256(made.settings.encode()).hexdigest()[:8]
    return PlannedRun(
        folder=f"stages/{method}-{config.seed}-{digest}",
        label=f"first stage of {', '.join(dict.fromkeys(run.label.rpartition(', seed')[0] for run in runs))}, seed {config.seed}",
        config=load_config(values),
        hidden=True,
    )
