"""Intervals of means over clients, by a percentile bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FEWEST_PAIRS = 6
"""Fewest pairs of clients for an interval of a difference."""
RESAMPLES = 9999
"""Resamples of the bootstrap for an interval."""
DIGITS = 9
"""Decimals of a difference. Accuracies have single precision, and rounding keeps equal accuracies equal."""
MOST_DRAWS_AT_ONCE = 4_000_000
"""Upper bound on draws in memory at the same time."""


def interval(found: Sequence[NDArray[np.float64]]) -> tuple[float, float] | None:
    """95 % interval of the mean, by the bootstrap over seeds and over the clients within each seed.

    Args:
        found: a value for each client, by seed.

    Returns:
        Low and high; None below FEWEST_PAIRS values, and where the interval has no width.
    """
    if sum(map(len, found)) < FEWEST_PAIRS:
        return None
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(found), size=(RESAMPLES, len(found)))
    total = np.zeros(RESAMPLES)
    for place in range(len(found)):
        for seed, values in enumerate(found):
            mine = np.flatnonzero(drawn[:, place] == seed)
            for part in np.array_split(mine, 1 + len(mine) * len(values) // MOST_DRAWS_AT_ONCE):
                total[part] += values[rng.integers(len(values), size=(len(part), len(values)))].mean(1)
    low, high = (round(float(each), DIGITS) for each in np.quantile(total / len(found), (0.025, 0.975)))
    return None if low == high else (low, high)
