"""A run's metrics.jsonl and result.json as TensorBoard's event files, with the extra `fedms[tensorboard]`."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from fedms.config import Config
from fedms.core.errors import FedmsError
from fedms.experiments.observers import Silent
from fedms.runs.folder import RunFolder
from fedms.runs.reading.run import METRICS, number, parse_rounds

SCORES = ("train_loss", "validation_score")
"""Each stage has a tag of its own, because stages score different models."""
SUMS = (
    "uplink_bytes",
    "downlink_bytes",
    "evaluation_bytes",
    "train_flops",
    "evaluation_flops",
    "evaluation_seconds",
    "seconds",
)
"""These are summed over the run."""


def require_tensorboard(config: Config) -> None:
    """Raise FedmsError if the config asks for event files and TensorBoard is not installed."""
    if config.log.tensorboard and find_spec("tensorboard") is None:
        raise FedmsError(
            "log.tensorboard: needs TensorBoard, which is not installed: pip install 'fedms[tensorboard]'"
        )


class Events(Silent):
    """Copies each line of a run folder's metrics.jsonl once into event files.

    A resumed run writes its event files again, from the lines that are there after its first round. A step is
    a line of metrics.jsonl, counted from 1 over the run, as in the report's pictures.
    """

    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        events = folder.path / "tensorboard"
        shutil.rmtree(events, ignore_errors=True)
        # a TensorBoard that is open must discard the points of the removed files
        self._writer = SummaryWriter(str(events), purge_step=0)
        self._metrics = folder.path / METRICS
        self._read = self._step = 0
        self._sums: Counter[str] = Counter()

    def round_done(self, record: dict[str, Any]) -> None:
        """Write the new lines of metrics.jsonl, of which the record is the last."""
        self._follow()

    def end(self, result: dict[str, Any]) -> None:
        """Write every number of the result, at the last step."""
        self._write({f"result/{key}": number(result, key) for key in result})
        self._writer.close()

    def _follow(self) -> None:
        with self._metrics.open(encoding="utf-8") as file:
            file.seek(self._read)
            lines = file.read()
            self._read = file.tell()
        for record in parse_rounds(lines, self._metrics):
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
