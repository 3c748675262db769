"""What the clients of a run predicted for their own test samples: their files predictions.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedms.core.errors import FedmsError
from fedms.core.paths import is_name

PREDICTIONS = "predictions.csv"
NEEDED = ("row", "label", "predicted", "local_weight")


@dataclass(frozen=True)
class Predicted:
    """A client's prediction for one of its test samples."""

    client: str
    row: str
    """The sample's row in the data set."""
    label: str
    predicted: str
    local_weight: float | None
    """The gate weight of the local expert; None, as all that follows, where no two experts are mixed."""
    global_predicted: str | None
    local_predicted: str | None
    disagreement: float | None
    """Total variation between the probabilities of both experts, from 0 to 1."""


def predictions_path(client: object) -> Path | None:
    """Where a run folder has a client's predictions; None if the name could lead elsewhere."""
    return Path("clients") / str(client) / PREDICTIONS if is_name(client) else None


def read_predictions(folder: Path, clients: Iterable[object]) -> list[Predicted]:
    """The predictions of these clients, as far as the run folder has them: real sites keep theirs.

    Raises:
        FedmsError: a file is damaged.
    """
    found = []
    for client in clients:
        place = predictions_path(client)
        if place is not None and (folder / place).is_file():
            found += _client_predictions(folder / place, str(client))
    return found


def _client_predictions(path: Path, client: str) -> list[Predicted]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if not {*NEEDED} <= {*(rows.fieldnames or ())}:
                raise KeyError("a column is missing")
            return [_predicted(client, row) for row in rows]
    except OSError as error:
        raise FedmsError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, csv.Error):
        raise FedmsError(f"{path}: damaged: not the predictions of a client") from None


def _predicted(client: str, row: dict[str, str]) -> Predicted:
    # a run of an earlier version says nothing of the experts alone
    alone = (row.get("global_predicted") or None, row.get("local_predicted") or None)
    weight, disagreement = _share(row["local_weight"]), _share(row.get("disagreement") or "")
    named = row["row"], row["label"], row["predicted"]
    if not all(isinstance(each, str) for each in named):
        raise ValueError("a line that is too short")
    return Predicted(client, *named, weight, *alone, disagreement)


def _share(text: str) -> float | None:
    value = float(text) if text else None
    if value is not None and not (math.isfinite(value) and -0.01 <= value <= 1.01):  # float32 may pass 1
        raise ValueError("no share")
    return value
