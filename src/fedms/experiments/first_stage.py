"""Reuse of a first stage: which run can take it from which other run."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

from fedms.config import Config
from fedms.core.errors import FedmsError
from fedms.core.paths import check_no_escape
from fedms.federation.method import Stage
from fedms.federation.methods import of
from fedms.runs.folder import PLACES, RunFolder, canonical_place
from fedms.runs.reading.run import RESULT


def reusable(config: Config, path: Path) -> RunFolder:
    """The run folder at `path`, if its first stage is the one that this config would train.

    Raises:
        FedmsError: it is not a finished run of this first stage alone.
    """
    check_no_escape(path)
    folder = RunFolder(path)
    other = folder.config()
    stage = shared_first_stage(config)
    same = (
        stage is not None
        and of(other).stages == (stage,)
        and first_stage_settings(other) == first_stage_settings(config)
    )
    if not same or not (path / RESULT).exists():
        raise FedmsError(
            f"{path}: not a finished run of this experiment's first stage alone, so it cannot be reused"
        )
    return folder


def shared_first_stage(config: Config) -> Stage | None:
    """The method's first stage if another run can provide it; None otherwise.

    Another run can provide it if the server holds everything that the stage trains.
    """
    stages = of(config).stages
    if config.privacy.unit is not None:  # a release is booked by the run that sent it
        return None
    if not stages or config.gate.features != "global" or not set(stages[0].trains) <= set(stages[0].shares):
        return None
    return stages[0]


KEYS_WITHOUT_EFFECT_ON_FIRST_STAGE: dict[str, set[str] | bool] = {
    "method": True,
    "federation": {"rounds_local", "cohort_local"},
    "training": {"local_learning_rate"},
    "activation": {"blocks_local"},
    "head": {"label_prior", "rederive"},
    "gate": True,
    "mixture": True,
    "evaluation": {"everyone", "public", "validation"},
    "cache": {"enabled", "memory_mb", "disk_mb"},
    "engine": True,
    "log": True,
    "compare": True,
}
"""Keys that do not change the result of a first, global stage: later stages, and how it is computed."""


def first_stage_settings(config: Config) -> dict[str, Any]:
    """All settings that change the result of a first, global stage, except the method."""
    values = config.model_dump(exclude=KEYS_WITHOUT_EFFECT_ON_FIRST_STAGE)
    for *parents, key in (place.split(".") for place in PLACES):
        node = reduce(dict.__getitem__, parents, values)
        if key in node:
            node[key] = canonical_place(node[key])
    return values
