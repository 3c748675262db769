"""A run's metrics.jsonl and result.json where experiments are watched: TensorBoard, Weights & Biases, MLflow,
Trackio. Each comes with an extra of its name and is imported where it is used.
"""

from __future__ import annotations

import os
import shutil
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from fedms.config import Config
from fedms.core.errors import FedmsError
from fedms.core.formatting import one_line
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
PROJECT = "fedms"
"""Where runs are listed, unless the variables of a tracker's environment say otherwise."""


class Tracker(Silent):
    """Copies each line of a run folder's metrics.jsonl once to a tracker.

    A resumed run is told again, from the lines that are there after its first round. A step is a line of
    metrics.jsonl, counted from 1 over the run, as in the report's pictures.
    """

    name: str
    """Its key in the section `log`, its extra and its package."""

    def __init__(self, folder: RunFolder) -> None:
        self._metrics = folder.path / METRICS
        self._read = self._step = 0
        self._sums: Counter[str] = Counter()

    @abstractmethod
    def write(self, values: dict[str, float], step: int) -> None:
        """Tell these numbers of a step."""

    @abstractmethod
    def close(self) -> None:
        """Tell that there are no more."""

    def round_done(self, record: dict[str, Any]) -> None:
        """Write the new lines of metrics.jsonl, of which the record is the last."""
        self._follow()

    def end(self, result: dict[str, Any]) -> None:
        """Write every number of the result, at the last step."""
        self._write({f"result/{key}": number(result, key) for key in result})
        self._guarded(self.close)

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
        known = {tag: float(value) for tag, value in values.items() if value is not None}
        self._guarded(lambda: self.write(known, self._step))

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever a package raises, as without a network
            raise FedmsError(
                f"log.{self.name}: {one_line(error)}; the run can be resumed without it"
            ) from error


class TensorBoard(Tracker):
    """Event files in the run folder's `tensorboard/`."""

    name = "tensorboard"

    def __init__(self, folder: RunFolder, config: Config) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(folder)
        events = folder.path / "tensorboard"
        shutil.rmtree(events, ignore_errors=True)
        # a TensorBoard that is open must discard the points of the removed files
        self._writer = SummaryWriter(str(events), purge_step=0)

    def write(self, values: dict[str, float], step: int) -> None:
        """One scalar a number."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._writer.close()


class Wandb(Tracker):
    """A run of Weights & Biases. Its variables hold: WANDB_MODE=offline, WANDB_PROJECT, WANDB_DIR.

    Its own files do not lie in the run folder, since they link to a cache elsewhere.
    """

    name = "wandb"

    def __init__(self, folder: RunFolder, config: Config) -> None:
        import wandb

        super().__init__(folder)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.path.name,
            config=config.model_dump(mode="json"),
            reinit="create_new",
        )

    def write(self, values: dict[str, float], step: int) -> None:
        """One line of history a step; the result goes to the last one."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """End the run there."""
        self._run.finish()


class Mlflow(Tracker):
    """A run of MLflow, in the run folder's `mlflow/` unless MLFLOW_TRACKING_URI names a place."""

    name = "mlflow"

    def __init__(self, folder: RunFolder, config: Config) -> None:
        from mlflow.tracking import MlflowClient

        super().__init__(folder)
        place = os.environ.get("MLFLOW_TRACKING_URI")
        if not place:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else MLflow 3 wants a database
            place = (folder.path.absolute() / "mlflow").as_uri()
        self._client = MlflowClient(place)
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(project)
        experiment = self._client.create_experiment(project) if known is None else known.experiment_id
        self._run = self._client.create_run(experiment, run_name=folder.path.name).info.run_id
        for key in ("method", "seed"):
            self._client.log_param(self._run, key, getattr(config, key))

    def write(self, values: dict[str, float], step: int) -> None:
        """One metric a number."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        self._client.log_batch(
            self._run, metrics=[Metric(tag, value, now, step) for tag, value in values.items()]
        )

    def close(self) -> None:
        """End the run there."""
        self._client.set_terminated(self._run)


class Trackio(Tracker):
    """A run of Trackio, in its own folder on this machine (TRACKIO_DIR)."""

    name = "trackio"

    def __init__(self, folder: RunFolder, config: Config) -> None:
        import trackio

        super().__init__(folder)
        self._trackio = trackio
        trackio.init(project=PROJECT, name=folder.path.name, config=config.model_dump(mode="json"))

    def write(self, values: dict[str, float], step: int) -> None:
        """One line a step."""
        self._trackio.log(values, step=step)

    def close(self) -> None:
        """End the run there."""
        self._trackio.finish()


TRACKERS = (TensorBoard, Wandb, Mlflow, Trackio)


def require_trackers(config: Config) -> None:
    """Raise FedmsError if the config asks for a tracker that is not installed."""
    for tracker in _asked(config):
        name = tracker.name
        if find_spec(name) is None:
            raise FedmsError(f"log.{name}: needs {name}, which is not installed: pip install 'fedms[{name}]'")


def trackers(config: Config, folder: RunFolder) -> list[Tracker]:
    """Those that the config asks for, open.

    Raises:
        FedmsError: one cannot be opened; the line says why.
    """
    opened: list[Tracker] = []
    for tracker in _asked(config):
        try:
            opened.append(tracker(folder, config))
        except Exception as error:
            raise FedmsError(f"log.{tracker.name}: {one_line(error)}") from error
    return opened


def _asked(config: Config) -> list[type[TensorBoard] | type[Wandb] | type[Mlflow] | type[Trackio]]:
    return [tracker for tracker in TRACKERS if getattr(config.log, tracker.name)]
