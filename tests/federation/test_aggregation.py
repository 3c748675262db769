"""From updates to new shared arrays."""

import itertools

import numpy as np
import pytest
import torch

from fedms.federation.aggregation import average, exact
from fedms.federation.messages import Update

SCALE = 2.0
SHAPES = {"block.1.query.lora_A": (2, 6), "block.1.query.lora_B": (5, 2), "head.weight": (3, 6)}


def updates(generator, weights=(30, 7, 1), shapes=SHAPES) -> list[Update]:
    return [
        Update(f"client-{number}", {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, weight)
        for number, weight in enumerate(weights)
    ]


def numpy_mean(answers: list[Update], name: str) -> np.ndarray:
    having = [update for update in answers if name in update.arrays]
    return np.average([update.arrays[name].double().numpy() for update in having], axis=0, weights=[update.weight for update in having])


def test_the_average_is_weighted(generator):
    answers = updates(generator)
    new = average({}, answers)
    assert new.keys() == SHAPES.keys()
    for name, array in new.items():
        np.testing.assert_allclose(array.numpy(), numpy_mean(answers, name), atol=1e-7)
        assert array.dtype == torch.float32


def test_each_key_is_normalised_over_those_who_trained_it(generator):
    answers = updates(generator)
    del answers[0].arrays["block.1.query.lora_A"]
    answers[2].arrays.clear()
    new = average({}, answers)
    np.testing.assert_array_equal(new["block.1.query.lora_A"].numpy(), answers[1].arrays["block.1.query.lora_A"].numpy())
    np.testing.assert_allclose(new["head.weight"].numpy(), numpy_mean(answers, "head.weight"), atol=1e-7)


@pytest.mark.parametrize("rule", [average, lambda shared, answers: exact(shared, answers, SCALE)], ids=["average", "exact"])
def test_what_nobody_trained_stays(generator, rule):
    shared = {"block.2.query.lora_A": torch.randn(2, 6, generator=generator), "head.weight": torch.zeros(3, 6)}
    before = {name: array.clone() for name, array in shared.items()}
    new = rule(shared, updates(generator))
    assert torch.equal(new["block.2.query.lora_A"], before["block.2.query.lora_A"])
    assert not torch.equal(new["head.weight"], before["head.weight"])
    assert all(torch.equal(shared[name], before[name]) for name in before), "the old state was changed in place"


@pytest.mark.parametrize("rule", [average, lambda shared, answers: exact(shared, answers, SCALE)], ids=["average", "exact"])
def test_the_order_of_answers_does_not_matter_to_the_last_bit(generator, rule):
    answers = updates(generator, weights=(30, 7, 1, 1000))
    for update in answers:  # in float64, where no rounding at the end hides the order of the additions
        update.arrays.update({name: array.double() for name, array in update.arrays.items()})
    first, *others = [rule({}, order) for order in itertools.permutations(answers)]
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


def product(arrays) -> torch.Tensor:
    """What the block adds to W."""
    A, B = arrays["block.1.query.lora_A"].double(), arrays["block.1.query.lora_B"].double()
    return SCALE * B @ A + arrays.get("block.1.query.residual", torch.zeros(5, 6)).double()


def test_exact_keeps_the_mean_of_the_products_over_rounds_and_the_average_does_not(generator):
    shapes = {name: shape for name, shape in SHAPES.items() if name.startswith("block.")}
    shared = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for _ in range(2):
        answers = updates(generator, shapes=shapes)
        for update in answers:
            for name in shapes:
                update.arrays[name].mul_(0.3).add_(shared[name])
        held = {name: array for name, array in shared.items() if name.endswith(".residual")}
        weights = torch.tensor([update.weight for update in answers], dtype=torch.float64)
        wanted = sum(weight * product(update.arrays | held) for weight, update in zip(weights / weights.sum(), answers, strict=True))
        lossy, shared = average(shared, answers), exact(shared, answers, SCALE)
        assert (product(shared) - wanted).abs().max() < 1e-6
        assert (product(lossy) - wanted).abs().max() > 1e-2


def test_exact_has_nothing_to_keep_where_the_clients_agree(generator):
    same = updates(generator, weights=(1,))[0].arrays
    new = exact({}, [Update("a", same, 3), Update("b", same, 5)], SCALE)
    assert new["block.1.query.residual"].abs().max() < 1e-6
