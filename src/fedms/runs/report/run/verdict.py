"""What a run's own numbers allow to claim, in one sentence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedms.core.formatting import percent, plural, points
from fedms.runs.intervals import FEWEST_PAIRS, interval
from fedms.runs.reading.predictions import Predicted
from fedms.runs.reading.run import Run, number

Rival = Callable[[Predicted], str | None]


def verdict(run: Run) -> str:
    """Whether the mixture is ahead of either expert alone on own data, by 95 % intervals over clients.

    Where no two experts are mixed, or no predictions are here: the accuracy on own data with its interval.
    """
    rivals: dict[str, Rival] = {
        "the global expert alone": lambda each: each.global_predicted,
        "the local expert alone": lambda each: each.local_predicted,
    }
    found = {name: _differences(run, rival) for name, rival in rivals.items()}
    if not all(map(len, found.values())):
        return _accuracy(run)
    clients = min(map(len, found.values()))
    if clients < FEWEST_PAIRS:
        few = plural(clients, "client")
        return (
            f"With {few} it cannot be said whether the mixture is ahead of either expert alone on own data."
        )
    said = [_against(name, differences) for name, differences in found.items()]
    return f"On own data, a client's mixture {' and '.join(said)}."


def _differences(run: Run, rival: Rival) -> NDArray[np.float64]:
    """Accuracy of each client's mixture minus that of its rival, on the client's own test data."""
    by_client = defaultdict[str, list[float]](list)
    for each in run.predictions:
        if (answer := rival(each)) is not None:
            by_client[each.client].append((each.predicted == each.label) - (answer == each.label))
    return np.array([sum(values) / len(values) for values in by_client.values()])


def _against(name: str, differences: NDArray[np.float64]) -> str:
    if (between := interval([differences])) is None:  # all clients have the same difference
        same = "does exactly as well as" if not differences.any() else "differs for all clients alike from"
        return f"{same} {name}"
    low, high = between
    how = "is ahead of" if low > 0 else "is behind" if high < 0 else "cannot be told from"
    return f"{how} {name} ({points(float(differences.mean()))} points, {points(low)} to {points(high)})"


def _accuracy(run: Run) -> str:
    own = [value for client in run.clients if (value := number(client, "accuracy_local")) is not None]
    between = interval([np.array(own)])
    if between is None:
        return ""
    low, high = map(percent, between)
    return (
        f"A client's model is right for {percent(sum(own) / len(own))} of its own test data, in the mean "
        f"over clients (95 % interval over clients: {low} to {high})."
    )
