"""Summary of a comparison's runs: means over seeds, and differences with their uncertainty.

**Pairs.** Two rows are compared on the same clients of the same seeds. A pair is one client of one seed; its
difference is the accuracy (of texts, the loss) of one row minus that of the other. Differences are averaged
over all pairs.

**Confidence.** 95 % intervals come from a percentile bootstrap in two levels (9999 resamples, seeded). The
clients of a seed share its partition, cohorts, global model and everyone's test data, so they are not
independent. Therefore seeds are drawn with replacement, then clients within each drawn seed, never across
seeds. A bootstrap over clients alone would be wrong: if one model serves all clients, every client of a seed
has the same accuracy_global, and the interval would have no width. With one seed, the interval covers its
clients and this partition only. With a few seeds, it reflects only the variation between these seeds. With
fewer than six pairs no sign test could reach 5 %, and without any variation there is no basis for inference;
then there is no interval and no claim.

**p** comes from Wilcoxon's signed-rank test over all pairs, which assumes independent pairs. It is shown
beside the interval, and no claim depends on it. It is left out if all pairs of every seed are equal.

**Distinguishable** means that the interval of a difference excludes 0. There is no correction for the number
of rows.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedms.runs.intervals import DIGITS, interval
from fedms.runs.reading.measures import Measure, measure_of
from fedms.runs.reading.run import number

Result = Mapping[str, Any]
Differences = list[NDArray[np.float64]]


def summarise(results: Mapping[str, Sequence[Result]], baseline: str) -> dict[str, dict[str, Any]]:
    """For each row, from its results over seeds: `mean`, `std`, `versus_baseline`, `best` and `frontier`.

    `std` is the sample standard deviation, null for fewer than two seeds. For each figure that rows are
    compared by, `best` marks the row with the best mean (`best`) and the rows that are not distinguishable
    from it (`equal`).
    """
    measure = measure_of(results[baseline][0])
    best = {key: _best(results, key, measure) for key in measure.keys}
    out = {}
    for row, own in results.items():
        known = {
            key: [value for result in own if (value := number(result, key)) is not None]
            for key in measure.metrics
        }
        against = {key: compare(own, results[baseline], key) for key in measure.keys}
        out[row] = {
            "mean": {key: statistics.fmean(values) if values else None for key, values in known.items()},
            "std": {
                key: statistics.stdev(values) if len(values) > 1 else None for key, values in known.items()
            },
            "versus_baseline": None if row == baseline else against,
            "best": {key: _mark(row, best[key], results, key) for key in measure.keys},
            "frontier": frontier(own),
        }
    return out


def compare(results: Sequence[Result], others: Sequence[Result], key: str) -> dict[str, Any]:
    """One row minus another, over pairs of clients.

    Returns:
        `difference`, its interval `low` to `high`, `p`, `pairs` (a count) and `distinguishable`.

    `low` and `high` are null without an interval; `p` is also null if all pairs of every seed are equal.
    """
    found = differences(results, others, key)
    pooled = np.concatenate(found) if found else np.empty(0)
    between = interval(found)
    return {
        "difference": float(pooled.mean()) if len(pooled) else None,
        "low": between[0] if between else None,
        "high": between[1] if between else None,
        "p": _signed_rank(pooled) if between and any(np.ptp(seed) for seed in found) else None,
        "pairs": len(pooled),
        "distinguishable": between is not None and not between[0] <= 0 <= between[1],
    }


def differences(results: Sequence[Result], others: Sequence[Result], key: str) -> Differences:
    """For each common seed, the differences of its common clients: float64 [clients]."""
    theirs = {other["seed"]: _per_client(other, key) for other in others}
    out = []
    for result in sorted(results, key=lambda result: int(result["seed"])):
        there = theirs.get(result["seed"], {})
        pairs = [
            round(value - there[name], DIGITS)
            for name, value in _per_client(result, key).items()
            if name in there
        ]
        if pairs:
            out.append(np.array(pairs))
    return out


def frontier(results: Sequence[Result]) -> list[dict[str, float]]:
    """Both figures for each prior, means over seeds; empty for a method without a prior."""
    curves = [result.get("frontier") or [] for result in results]
    keys = measure_of(results[0]).keys
    return [
        {"prior": points[0]["prior"]}
        | {key: statistics.fmean(point[key] for point in points) for key in keys}
        for points in zip(*curves, strict=False)
    ]


def _per_client(result: Result, key: str) -> dict[str, float]:
    return {
        client["name"]: value for client in result["per_client"] if (value := number(client, key)) is not None
    }


def _best(results: Mapping[str, Sequence[Result]], key: str, measure: Measure) -> str:
    """The row with the best mean."""
    found: str = measure.best(
        results, key=lambda row: statistics.fmean(result[key] for result in results[row])
    )
    return found


def _mark(row: str, best: str, results: Mapping[str, Sequence[Result]], key: str) -> str:
    if row == best:
        return "best"
    return "" if compare(results[row], results[best], key)["distinguishable"] else "equal"


def _signed_rank(pooled: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's test without pairs of difference 0; 1 if there is no other pair."""
    from scipy.stats import wilcoxon

    return float(wilcoxon(pooled).pvalue) if pooled.any() else 1.0
