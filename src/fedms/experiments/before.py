"""The finished run from which another one goes on, or which a client joins (`start_from`, `join`): what must
be the same, and what it left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Self

from fedms.config import Config, load_config
from fedms.core.errors import ConfigError, FedmsError
from fedms.core.formatting import excerpt
from fedms.core.paths import alike
from fedms.federation.exchanges.selection import Selection
from fedms.federation.identity import Identity
from fedms.federation.method import Stage
from fedms.federation.methods import of
from fedms.federation.personal_model import UNSCALED
from fedms.federation.sites import ServerSide
from fedms.model.arrays import Arrays
from fedms.runs.folder import RunFolder
from fedms.runs.personal_files import MODEL
from fedms.runs.reading.run import Run, read_run

SAME = (
    *("method", "lora.rank", "lora.alpha", "lora.targets", "head.kind", "federation.aggregation"),
    *("activation.rule", "activation.order", "model.prompt_tokens", "data.template", "head.prompt"),
    *("gate.adapter_rank", "gate.hidden", "gate.features", "gate.share"),
)
"""Keys on which the arrays of a run depend."""


@dataclass(frozen=True)
class Before:
    """A finished run that this one goes on from."""

    config: Config
    """Of the new run"""
    folder: RunFolder
    run: Run

    @classmethod
    def of(cls, config: Config) -> Self | None:
        """The run that the config names, if it names one.

        Raises:
            FedmsError: it is no finished run, or its arrays would not fit.
        """
        if config.start_from is None:
            return None
        path = Path(config.start_from).expanduser()
        found = cls(config, RunFolder(path), read_run(path))
        if not of(config).stages:
            raise FedmsError(f"start_from: method {config.method} trains nothing that could be gone on from")
        found._check_keys()
        return found

    def _check_keys(self) -> None:
        """Raise FedmsError where a key differs that must be the same."""
        theirs, ours = self.folder.config(), self.config
        # of A that never trains only the seed tells which it is
        keys = (*SAME, "seed") if ours.federation.aggregation == "freeze-a" else SAME
        keys = keys if ours.join is not None else (*keys, "engine.name")  # clients' files are with the engine
        for key in keys:
            there, here = (reduce(getattr, key.split("."), each) for each in (theirs, ours))
            if there != here:
                raise FedmsError(f"start_from: {self.folder.path} has {key} {there}, not {here}")

    def check(self, world: ServerSide, identity: Identity) -> None:
        """Raise FedmsError where model, classes, depth or clients' files do not fit."""
        path = self.folder.path
        if change := self.folder.identity().model_change(identity.model, self.config):
            raise FedmsError(f"start_from: {path}: {change}")
        held = self.run.result["partition"]
        classes, names = list(held["classes"]), list(world.class_names)
        if classes != names:
            differing = sorted({*classes} ^ {*names})
            why = f"class {excerpt(differing[0])} is not in both" if differing else "in another order"
            raise FedmsError(f"start_from: {path} has other classes: {why}; name them with data.classes")
        active, most = self.state()[1]["activation"]["active"], self.config.activation.maximum
        if most is not None and active > most:
            raise FedmsError(
                f"start_from: {path} has {active} active blocks, and activation.maximum is {most}"
            )
        known = list(held["clients"])
        if ours := self.config.join:
            if ours in known or alike([*known, ours]):
                raise FedmsError(
                    f"start_from: {path} has a client {ours} already; name the new one otherwise"
                )
        elif self.config.engine.name == "local":
            for name in sorted({*world.clients} & {*known}):
                if not (self.folder.client(name).path / MODEL).exists():
                    raise FedmsError(f"start_from: {path}: what client {name} kept is gone")

    def state(self, stage: Stage | None = None) -> tuple[Arrays, dict[str, Any]]:
        """The server's state at the end of a stage; default: of the last one."""
        return self.folder.stage((stage or of(self.config).stages[-1]).name)

    @property
    def selection(self) -> Selection:
        """What its clients' validation data chose."""
        result = self.run.result
        scales, step = result.get("evidence_scales"), result.get("interpolation")
        return Selection(result["prior"], 1.0 if step is None else step, tuple(scales or UNSCALED))


def joining(run: Path, name: str, data: str | None, overrides: Sequence[str] = ()) -> Config:
    """The config by which a new client joins a finished run.

    Args:
        data: place of its samples, on this machine; None for a site, which has its own.

    Raises:
        FedmsError: it is no finished run, or the client cannot join.
    """
    finished, config = read_run(run), RunFolder(run).config()
    if data is None and config.engine.name == "local":
        raise ConfigError(f"--data: needed, since the clients of {run} are on its machine, not at sites")
    values = config.model_dump(exclude={"compare"})
    values |= {"start_from": str(run), "join": name}
    values["partition"] |= {"rule": "files", "clients": 1, "column": None}
    values["federation"] |= {"cohort": 1, "cohort_local": 1, "oversample": 0, "quorum": 1, "rounds_global": 0}
    values["federation"]["sites"] = (name,) if data is None else ()
    values["evaluation"] |= {"everyone": None, "clients": None}
    classes = tuple(finished.result["partition"]["classes"])
    values["data"] |= {
        "source": config.data.source if data is None else data,
        "classes": classes,
        "limit": None,
    }
    values["engine"] |= {} if data is None else {"name": "local"}
    return load_config(values, overrides)
