"""What the intervals of a comparison allow to claim, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from fedms.core.formatting import clip
from fedms.runs.reading.comparison import Comparison, RowResults
from fedms.runs.reading.run import number

MOST_NAMED = 4
"""Most rows that a sentence names one by one."""
WHOSE = ("own data", "everyone's data")


def verdict(comparison: Comparison) -> str:
    """Which rows the baseline is ahead of, behind, or not distinguishable from, on both kinds of data."""
    others = [row for row in comparison.rows if row is not comparison.baseline]
    if not others:
        return ""
    name = clip(comparison.baseline.name)
    lower = comparison.measure.lower
    said = [
        f"on {whose} {text}"
        for whose, metric in zip(WHOSE, comparison.measure.keys, strict=True)
        if (text := _standing(others, metric, lower))
    ]
    if not said:
        return f"No interval tells {name} from another row: there are too few clients, or no variation."
    return f"{name}: {'; '.join(said)}."


def _standing(others: Sequence[RowResults], metric: str, lower: bool) -> str:
    """`ahead of a and b, behind c`; rows without an interval are in no list."""
    lists: dict[str, list[str]] = {"ahead of": [], "behind": [], "not distinguishable from": []}
    for row in others:
        versus = row.versus_baseline(metric)
        difference, low = number(versus, "difference"), number(versus, "low")
        if difference is None or low is None:
            continue
        apart = versus.get("distinguishable") is True
        # a difference is that of the row minus the baseline
        how = ("ahead of" if (difference < 0) != lower else "behind") if apart else "not distinguishable from"
        lists[how].append(clip(row.name))
    return ", ".join(f"{how} {_listed(names)}" for how, names in lists.items() if names)


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`; of many, the first and how many more."""
    if len(names) > MOST_NAMED:
        names = [*names[: MOST_NAMED - 1], f"{len(names) - MOST_NAMED + 1} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
