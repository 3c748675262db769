"""The order of the queue: no worker idles at the end of a round while another has much to do."""

from itertools import pairwise

import numpy as np
import pytest

from fedms.engines.schedule import alike, in_order


def finish(costs: list[int], order: list[int], workers: int) -> int:
    """When the last of these workers ends that take clients from one queue in this order."""
    busy = [0] * workers
    for place in order:
        busy[busy.index(min(busy))] += costs[place]
    return max(busy)


def best(costs: list[int], workers: int) -> int:
    """When the last of them ends by the best of all assignments."""
    loads = np.zeros((1, workers), dtype=int)
    for cost in sorted(costs, reverse=True):
        more = loads[:, None, :] + cost * np.eye(workers, dtype=int)
        loads = np.unique(np.sort(more.reshape(-1, workers), 1), axis=0)
    return int(loads.max(1).min())


@pytest.mark.parametrize("workers", [2, 4])
def test_a_round_takes_hardly_longer_than_by_the_best_of_all_assignments(workers):
    """Cohorts of ten of 30 clients by Dirichlet 0.1."""
    taken = ideal = at_home = 0
    for seed in range(3):
        draw = np.random.default_rng(seed)
        shares = draw.dirichlet([0.1] * 30, size=77).sum(0)
        sizes = np.maximum(1, shares / shares.sum() * 10_000).astype(int)
        for _ in range(2):
            names = draw.choice(30, 10, replace=False)
            cohort = [int(sizes[name]) for name in names]
            order = in_order(cohort, workers)
            assert sorted(order) == list(range(10))
            taken += finish(cohort, order, workers)
            ideal += best(cohort, workers)
            at_home += max(int(sizes[names[names % workers == worker]].sum()) for worker in range(workers))
    assert taken <= 1.05 * ideal < 1.15 * ideal < at_home


def test_the_plan_holds_whatever_the_clients_are():
    assert in_order([], 2) == [] and in_order([0, 0, 0], 2) == [0, 1, 2]
    assert in_order([1, 5, 3], 1) == [1, 2, 0]
    assert in_order([4], 8) == [0]
    for draw in map(np.random.default_rng, range(20)):
        costs = draw.integers(1, 100, draw.integers(1, 200)).tolist()
        workers = int(draw.integers(2, 9))
        order = in_order(costs, workers)
        assert sorted(order) == list(range(len(costs)))
        assert finish(costs, order, workers) <= sum(costs) / workers + max(costs)


def test_clients_that_train_together_are_of_like_size():
    assert alike([3, 9, 1, 7, 5], 2) == [[1, 3], [4, 0], [2]]
    groups = alike(list(range(10)), 3)
    assert all(min(one) > max(other) for one, other in pairwise(groups))
