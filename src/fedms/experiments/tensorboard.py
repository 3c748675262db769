"""A run's metrics.jsonl and result.json as TensorBoard's event files, with the extra `fedms[tensorboard]`."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from fedms.config import Config
from fedms.core.errors import FedmsError
from fedms.experiments.observers import Silent
from fedms.runs.folder import RunFolder
from fedms.runs.reading.run import number

SCORES = ("train_loss", "validation_score")
"""A tag each stage, since stages score different models."""
SUMS = (
    "uplink_bytes",
    "downlink_bytes",
    "evaluation_bytes",
    "train_flops",
    "evaluation_flops",
    "evaluation_seconds",
    "seconds",
)
"""Added up over the run."""


def require_tensorboard(config: Config) -> None:
    """FedmsError where event files are wanted and nothing can write them."""
    if config.log.tensorboard and find_spec("tensorboard") is None:
        raise FedmsError(
            "log.tensorboard: wants TensorBoard, which is not installed: pip install 'fedms[tensorboard]'"
        )


class Events(Silent):
    """Follows a run folder's metrics.jsonl: what it says is written, whatever wrote it, and every line once.

    A run that goes on has its event files written afresh, from the lines that are there when its first round is done. A step is a line
    of metrics.jsonl, counted from 1 over the run, as in the report's pictures.
    """

    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        events = folder.path / "tensorboard"
        shutil.rmtree(events, ignore_errors=True)
        # what a TensorBoard that is looking on has read from the files before these is void
        self._writer = SummaryWriter(str(events), purge_step=0)
        self._metrics = folder.path / "metrics.jsonl"
        self._read = self._step = 0
        self._sums: Counter[str] = Counter()

    def round_done(self, record: dict[str, Any]) -> None:
        """The lines that are new; the record is the last of them."""
        self._follow()

    def end(self, result: dict[str, Any]) -> None:
        """Every number of the result, at the last step."""
        self._write({f"result/{key}": number(result, key) for key in result})
        self._writer.close()

    def _follow(self) -> None:
        with self._metrics.open(encoding="utf-8") as file:
            file.seek(self._read)
            lines = file.readlines()
            self._read = file.tell()
        for line in lines:
            record = json.loads(line)
            self._step += 1
            self._sums.update({key: number(record, key) or 0 for key in SUMS})
            scores = {f"{record['stage']}/{key}": number(record, key) for key in SCORES}
            self._write(
                {
                    **scores,
                    "active_blocks": number(record, "active_blocks"),
                    "failures": len(record["failures"]),
                    **self._sums,
                }
            )

    def _write(self, values: Mapping[str, float | None]) -> None:
        for tag, value in values.items():
            if value is not None:
                self._writer.add_scalar(tag, value, self._step)
        self._writer.flush()
