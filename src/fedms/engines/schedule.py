"""In what order clients are begun, so that several workers end at about the same time.

A queue whose order follows a plan keeps to it where the costs were foreseen, and where they were not, no
worker waits. The plan is MULTIFIT (Coffman, Garey & Johnson, 1978): the smallest span within which the
clients, largest first, each find a worker with room. To begin the largest first is nearly as good for two
workers, and ends a tenth later for four (rounds of ten clients, Dirichlet 0.1).
"""

from __future__ import annotations

from collections.abc import Sequence

HALVINGS = 12
"""How often the span of the plan is halved."""


def alike(samples: Sequence[int], size: int) -> list[list[int]]:
    """Places of clients with these numbers of samples, in groups of at most `size` of about as many."""
    ordered = sorted(range(len(samples)), key=lambda place: -samples[place])
    return [ordered[at : at + size] for at in range(0, len(ordered), size)]


def in_order(costs: Sequence[float], workers: int) -> list[int]:
    """Places of these costs in the order in which free workers should begin them."""
    largest_first = sorted(range(len(costs)), key=lambda place: -costs[place])
    if not costs or workers == 1:
        return largest_first
    low = max(max(costs), sum(costs) / workers)
    high = low + max(costs)  # room for anything: some worker is always below the mean
    starts = dict.fromkeys(largest_first, 0.0)
    for _ in range(HALVINGS):
        span = (low + high) / 2
        if found := _starts(costs, largest_first, workers, span):
            starts, high = found, span
        else:
            low = span
    return sorted(largest_first, key=lambda place: starts[place])


def _starts(
    costs: Sequence[float], largest_first: Sequence[int], workers: int, span: float
) -> dict[int, float] | None:
    """When each begins if the first worker with room for it takes it; None where one finds no room."""
    loads, starts = [0.0] * workers, {}
    for place in largest_first:
        worker = next((each for each, load in enumerate(loads) if load + costs[place] <= span), None)
        if worker is None:
            return None
        starts[place] = loads[worker]
        loads[worker] += costs[place]
    return starts
