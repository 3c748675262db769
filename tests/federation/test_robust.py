"""Averages for federations in which some clients lie."""

import numpy as np
import pytest
import torch
from scipy import stats

from fedms.config import load_config
from fedms.core.errors import ConfigError
from fedms.federation.aggregation.mean import average
from fedms.federation.aggregation.robust import median, multi_krum, norm_clip, supposed, trimmed_mean
from fedms.federation.messages import Update
from fedms.federation.methods import METHODS

RULES = {
    "median": median,
    "trimmed-mean": lambda shared, updates: trimmed_mean(shared, updates, 0.2),
    "multi-krum": lambda shared, updates: multi_krum(shared, updates, 0.2),
    "norm-clip": norm_clip,
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def answers(*values, weights=None, name="head.weight") -> list[Update]:
    """One array a client."""
    weights = weights or [1] * len(values)
    arrays = [torch.tensor(value, dtype=torch.float32) for value in values]
    return [
        Update(f"client-{i}", {name: array}, weight)
        for i, (array, weight) in enumerate(zip(arrays, weights, strict=True))
    ]


def noise(generator, count=10) -> list[Update]:
    shapes = {"block.1.query.lora_A": (2, 6), "block.1.query.lora_B": (5, 2), "head.bias": (3,)}
    arrays = [
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for _ in range(count)
    ]
    return [Update(f"client-{i}", each, 1 + i) for i, each in enumerate(arrays)]


# the mathematics


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_median_is_that_of_each_number(generator, count):
    updates = noise(generator, count)
    new = median({}, updates)
    for name in updates[0].arrays:
        wanted = np.median([update.arrays[name].numpy().astype(float) for update in updates], axis=0)
        np.testing.assert_allclose(new[name].numpy(), wanted, atol=1e-7)
        assert new[name].dtype == torch.float32


@pytest.mark.parametrize(("count", "liars"), [(10, 0.2), (10, 0.25), (5, 0.2), (4, 0.4), (2, 0.4)])
def test_the_trimmed_mean_leaves_out_as_many_at_each_end_as_may_lie(generator, count, liars):
    updates = noise(generator, count)
    away = min(supposed(liars, count), (count - 1) // 2)
    for name, array in trimmed_mean({}, updates, liars).items():
        values = [update.arrays[name].numpy().astype(float) for update in updates]
        np.testing.assert_allclose(
            array.numpy(), stats.trim_mean(values, (away + 1e-6) / count, axis=0), atol=1e-7
        )


def test_a_share_of_liars_is_rounded_up_and_not_by_rounding_errors():
    assert [supposed(0.2, count) for count in (0, 1, 4, 5, 6, 10, 15)] == [0, 1, 1, 1, 2, 2, 3]
    assert supposed(0.0, 10) == 0 and supposed(0.1, 30) == 3


def test_krum_chooses_those_that_lie_close_together():
    # n = 5, f = 1: scores over the two nearest are 1+4, 1+1, 1+4, 49+64, 81+100: the last is left out
    updates = answers([0.0], [1.0], [2.0], [9.0], [18.0], weights=[1, 2, 3, 4, 5])
    new = multi_krum({}, updates, 0.2)["head.weight"]
    torch.testing.assert_close(new, average({}, updates[:4])["head.weight"])
    # f = 2 would be too many among five, and is 1 again; among seven it is 2
    torch.testing.assert_close(multi_krum({}, updates, 0.4)["head.weight"], new)
    seven = answers([0.0], [1.0], [2.0], [3.0], [4.0], [50.0], [51.0])
    assert multi_krum({}, seven, 0.25)["head.weight"].item() == 2.0


def test_krum_takes_an_update_as_a_whole(generator):
    updates = noise(generator, 7)
    updates[3].arrays["head.bias"] += 1000.0  # one array gives it away, and none of it counts
    rest = [update for update in updates if update.client != "client-3"]
    new, wanted = multi_krum({}, updates, 0.1), average({}, rest)
    assert all(torch.equal(new[name], wanted[name]) for name in wanted)


def test_clipping_shortens_the_long_to_the_median_step_and_leaves_the_short():
    shared = {"head.weight": torch.tensor([1.0, 1.0])}
    new = norm_clip(shared, answers([1.0, 2.0], [3.0, 1.0], [1.0, -99.0]))[
        "head.weight"
    ]  # steps of 1, 2 and 100
    torch.testing.assert_close(new, 1 + torch.tensor([0.0 + 2.0 + 0.0, 1.0 + 0.0 - 2.0]) / 3)


def test_clipping_measures_the_whole_update():
    shared = {"head.bias": torch.zeros(1), "head.weight": torch.zeros(1)}
    steps = [(3.0, 4.0), (5.0, 0.0), (30.0, 40.0)]  # lengths 5, 5, 50
    updates = [
        Update(f"client-{i}", {"head.bias": torch.tensor([b]), "head.weight": torch.tensor([w])}, 1)
        for i, (b, w) in enumerate(steps)
    ]
    new = norm_clip(shared, updates)
    torch.testing.assert_close(new["head.bias"], torch.tensor([11.0 / 3]))
    torch.testing.assert_close(new["head.weight"], torch.tensor([8.0 / 3]))


# weights


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_a_large_number_of_samples_is_no_lever(name):
    values = [0.0], [1.0], [2.0], [3.0], [50.0]
    wanted = RULES[name]({}, answers(*values))
    assert torch.equal(
        RULES[name]({}, answers(*values, weights=[1, 1, 1, 1, 10**6]))["head.weight"], wanted["head.weight"]
    )


@pytest.mark.parametrize("name", ["multi-krum", "norm-clip"])
def test_what_is_chosen_or_clipped_counts_by_its_samples(name):
    new = RULES[name](
        {"head.weight": torch.zeros(1)}, answers([1.0], [1.0], [-1.0], [-1.0], weights=[3, 3, 1, 1])
    )
    torch.testing.assert_close(new["head.weight"], torch.tensor([0.5]))


# what holds for all


@every_rule
def test_alike_answers_come_to_themselves(rule):
    torch.testing.assert_close(
        rule({}, answers(*[[1.0, -2.0]] * 6))["head.weight"], torch.tensor([1.0, -2.0])
    )


@every_rule
def test_the_order_of_answers_does_not_matter_to_the_last_bit(generator, rule):
    updates = noise(generator)
    there, back = rule({}, updates), rule({}, updates[::-1])
    assert all(torch.equal(there[name], back[name]) for name in there)


@every_rule
def test_each_array_is_taken_over_those_that_trained_it_and_the_rest_stays(generator, rule):
    updates = noise(generator)
    for update in updates[:7]:
        del update.arrays["block.1.query.lora_A"]
    shared = {"block.2.query.lora_A": torch.ones(2, 6), "block.1.query.lora_A": torch.zeros(2, 6)}
    new = rule(shared, updates)
    strong = [
        Update(u.client, {"block.1.query.lora_A": u.arrays["block.1.query.lora_A"]}, u.weight)
        for u in updates[7:]
    ]
    assert torch.equal(new["block.1.query.lora_A"], rule(shared, strong)["block.1.query.lora_A"])
    assert torch.equal(new["block.2.query.lora_A"], torch.ones(2, 6))


@every_rule
def test_two_of_ten_that_send_a_thousand_times_as_much_hardly_matter(generator, rule):
    updates = noise(generator)
    honest = average({}, updates[2:])
    for update in updates[:2]:
        update.arrays.update({name: -1000 * array for name, array in update.arrays.items()})
    shared = {name: torch.zeros_like(array) for name, array in honest.items()}
    new, plain = rule(shared, updates), average(shared, updates)
    for name, array in honest.items():
        assert (new[name] - array).abs().max() < 2 < (plain[name] - array).abs().max()


# with what it goes


@pytest.mark.parametrize("method", ["fedex-lora", "flexlora", "fedalt"])
def test_a_mean_that_must_be_plain_is_not_replaced(method):
    with pytest.raises(ConfigError, match=r"^federation\.robust: must be `none`") as caught:
        METHODS[method].configure(load_config({"method": method, "federation": {"robust": "median"}}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["fedms", "ffa-lora", "fedrep"])
def test_any_other_mean_is(method):
    METHODS[method].configure(load_config({"method": method, "federation": {"robust": "median"}}))
