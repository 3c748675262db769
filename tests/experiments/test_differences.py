"""Means, paired differences and their intervals, against values computed by hand and by scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedms.experiments.comparison.differences import compare, differences, frontier, summarise
from fedms.runs import intervals


def result(seed: int, local, world=None, **more):
    """A result of clients c0, c1, ... with these accuracies."""
    world = local if world is None else world
    clients = [
        {"name": f"c{i}", "accuracy_local": float(a), "accuracy_global": float(b)}
        for i, (a, b) in enumerate(zip(local, world, strict=True))
    ]
    return {
        "seed": seed,
        "accuracy_local": float(np.mean(local)),
        "accuracy_global": float(np.mean(world)),
        "per_client": clients,
        **more,
    }


def test_mean_and_sample_deviation_over_seeds_by_hand():
    rows = {
        "a": [result(0, [0.5, 0.7], seconds=1.0), result(1, [0.7, 0.9], seconds=4.0)],
        "b": [result(0, [0.1, 0.1])],
    }
    found = summarise(rows, "a")
    assert found["a"]["mean"]["accuracy_local"] == pytest.approx(0.7) and found["a"]["std"][
        "accuracy_local"
    ] == pytest.approx(0.02**0.5)
    assert found["a"]["mean"]["seconds"] == 2.5 and found["a"]["std"]["seconds"] == pytest.approx(4.5**0.5)
    assert found["b"]["std"]["accuracy_local"] is None
    assert found["b"]["mean"]["seconds"] is None and found["a"]["mean"]["gate_global_share"] is None


def test_pairs_are_the_same_client_of_the_same_seed():
    one = [result(1, [0.9, 0.5]), result(0, [0.4, 0.6])]
    other = [result(0, [0.3, 0.3]), result(1, [0.5, 0.5]), result(2, [0.0, 0.0])]
    other[0]["per_client"].reverse()  # clients are matched by name, not by position
    assert [list(seed) for seed in differences(one, other, "accuracy_local")] == [[0.1, 0.3], [0.4, 0.0]]
    found = compare(one, other, "accuracy_local")
    assert found["difference"] == pytest.approx(0.2) and found["pairs"] == 4
    assert found["low"] is None and found["p"] is None and not found["distinguishable"]  # too few pairs


def test_the_interval_of_one_seed_is_scipys_bootstrap_and_p_is_scipys():
    made = np.random.default_rng(1).normal(0.05, 0.1, 40).round(6)
    found = compare([result(0, made)], [result(0, np.zeros(40))], "accuracy_local")
    interval = stats.bootstrap((made,), np.mean, method="percentile", rng=7).confidence_interval
    assert (found["low"], found["high"]) == pytest.approx(interval, abs=2e-3)
    assert found["p"] == pytest.approx(stats.wilcoxon(made).pvalue)
    assert found["distinguishable"]


def test_seeds_are_drawn_first_then_clients_within_them():
    """With three different seeds, a bootstrap over clients alone would give a ten times narrower interval."""
    draw = np.random.default_rng(0)
    seeds = [draw.normal(mean, 0.01, 30).round(6) for mean in (-0.1, 0.1, 0.2)]
    zero = [result(seed, np.zeros(30)) for seed in range(3)]
    found = compare([result(seed, values) for seed, values in enumerate(seeds)], zero, "accuracy_local")
    assert found["low"] == pytest.approx(-0.1, abs=0.01) and found["high"] == pytest.approx(0.2, abs=0.01)
    assert found["difference"] == pytest.approx(0.2 / 3, abs=0.005) and not found["distinguishable"]
    # a gain in every seed is distinguishable
    found = compare([result(seed, 0.3 + values) for seed, values in enumerate(seeds)], zero, "accuracy_local")
    assert found["distinguishable"] and found["low"] > 0.15


def test_no_claim_where_nothing_varies():
    """A single model for all clients has the same accuracy on everyone's data at every client."""
    level, lower = result(0, [0.6] * 30), result(0, [0.6 - 2e-10] * 30)
    for other in (level, lower, result(0, [0.5] * 30)):
        found = compare([level], [other], "accuracy_global")
        assert (found["low"], found["p"], found["distinguishable"]) == (None, None, False)
    over_seeds = [result(seed, [value] * 30) for seed, value in enumerate((0.6, 0.5, 0.7))]
    found = compare(over_seeds, [result(seed, [0.55] * 30) for seed in range(3)], "accuracy_global")
    assert (
        (found["low"], found["high"]) == (-0.05, 0.15) and found["p"] is None and not found["distinguishable"]
    )


def test_marks_name_the_best_and_those_that_cannot_be_told_from_it():
    draw = np.random.default_rng(0)
    base = draw.uniform(0.4, 0.6, 40)
    rows = {
        "fedms": [result(seed, base + 0.1) for seed in range(2)],
        "near": [result(seed, base + 0.099 + draw.normal(0, 0.05, 40)) for seed in range(2)],
        "far": [result(seed, base + draw.normal(0, 0.02, 40)) for seed in range(2)],
    }
    found = summarise(rows, "far")
    marks = {row: found[row]["best"]["accuracy_local"] for row in rows}
    assert sorted([marks["fedms"], marks["near"]]) == ["best", "equal"] and marks["far"] == ""
    assert found["far"]["versus_baseline"] is None
    against = found["fedms"]["versus_baseline"]["accuracy_local"]
    assert (
        against["difference"] == pytest.approx(0.1, abs=0.01)
        and against["distinguishable"]
        and against["pairs"] == 80
    )


def test_a_comparison_is_the_same_each_time_and_whatever_fits_into_memory(monkeypatch):
    one = [result(seed, np.random.default_rng(seed).uniform(size=20)) for seed in range(3)]
    other = [result(seed, np.random.default_rng(9 + seed).uniform(size=20)) for seed in range(3)]
    found = compare(one, other, "accuracy_local")
    assert compare(one, other, "accuracy_local") == found
    monkeypatch.setattr(intervals, "MOST_DRAWS_AT_ONCE", 1000)
    assert compare(one, other, "accuracy_local") == found


def test_a_frontier_is_the_mean_over_seeds():
    def curve(shift: float) -> list[dict[str, float]]:
        return [{"prior": p, "accuracy_local": shift + p, "accuracy_global": 1 - p} for p in (0.0, 1.0)]

    points = frontier([result(0, [0.1], frontier=curve(0.0)), result(1, [0.1], frontier=curve(0.2))])
    assert [point["accuracy_local"] for point in points] == pytest.approx([0.1, 1.1])
    assert frontier([result(0, [0.1], frontier=[])]) == []
