"""From updates to new shared arrays."""

import itertools

import numpy as np
import pytest
import torch

from fedms.federation.aggregation.mean import average
from fedms.federation.aggregation.products import exact, svd
from fedms.federation.messages import Update

SCALE = 2.0
SHAPES = {"block.1.query.lora_A": (2, 6), "block.1.query.lora_B": (5, 2), "head.weight": (3, 6)}


def updates(generator, weights=(30, 7, 1), shapes=SHAPES) -> list[Update]:
    return [
        Update(
            f"client-{number}",
            {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()},
            weight,
        )
        for number, weight in enumerate(weights)
    ]


def numpy_mean(answers: list[Update], name: str) -> np.ndarray:
    having = [update for update in answers if name in update.arrays]
    return np.average(
        [update.arrays[name].double().numpy() for update in having],
        axis=0,
        weights=[update.weight for update in having],
    )


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
    np.testing.assert_array_equal(
        new["block.1.query.lora_A"].numpy(), answers[1].arrays["block.1.query.lora_A"].numpy()
    )
    np.testing.assert_allclose(new["head.weight"].numpy(), numpy_mean(answers, "head.weight"), atol=1e-7)


@pytest.mark.parametrize(
    "rule", [average, lambda shared, answers: exact(shared, answers, SCALE)], ids=["average", "exact"]
)
def test_what_nobody_trained_stays(generator, rule):
    shared = {
        "block.2.query.lora_A": torch.randn(2, 6, generator=generator),
        "head.weight": torch.zeros(3, 6),
    }
    before = {name: array.clone() for name, array in shared.items()}
    new = rule(shared, updates(generator))
    assert torch.equal(new["block.2.query.lora_A"], before["block.2.query.lora_A"])
    assert not torch.equal(new["head.weight"], before["head.weight"])
    assert all(torch.equal(shared[name], before[name]) for name in before), (
        "the old state was changed in place"
    )


@pytest.mark.parametrize(
    "rule", [average, lambda shared, answers: exact(shared, answers, SCALE)], ids=["average", "exact"]
)
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
        wanted = sum(
            weight * product(update.arrays | held)
            for weight, update in zip(weights / weights.sum(), answers, strict=True)
        )
        lossy, shared = average(shared, answers), exact(shared, answers, SCALE)
        assert (product(shared) - wanted).abs().max() < 1e-6
        assert (product(lossy) - wanted).abs().max() > 1e-2


def test_exact_has_nothing_to_keep_where_the_clients_agree(generator):
    same = updates(generator, weights=(1,))[0].arrays
    new = exact({}, [Update("a", same, 3), Update("b", same, 5)], SCALE)
    assert new["block.1.query.residual"].abs().max() < 1e-6


# singular value decomposition

PAIR = {name: shape for name, shape in SHAPES.items() if name.startswith("block.")}


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_svd_is_the_best_of_its_rank_whatever_the_clients_ranks(generator, rank):
    answers = [
        Update(
            f"client-{number}",
            {
                "block.1.query.lora_A": A,
                "block.1.query.lora_B": B,
                "head.weight": torch.randn(3, 6, generator=generator),
            },
            weight,
        )
        for number, (held, weight) in enumerate(((2, 30), (1, 7), (3, 5)))
        for A, B in [(torch.randn(held, 6, generator=generator), torch.randn(5, held, generator=generator))]
    ]
    wanted = sum(update.weight / 42 * product(update.arrays) / SCALE for update in answers)
    shared = {"block.1.query.lora_A": torch.randn(rank, 6), "block.1.query.lora_B": torch.randn(5, rank)}
    new = svd(shared, answers, rank)
    assert (new["block.1.query.lora_A"].shape, new["block.1.query.lora_B"].shape) == ((rank, 6), (5, rank))
    U, S, Vt = torch.linalg.svd(wanted, full_matrices=False)
    for cut in range(1, rank + 1):  # what a client of this rank takes
        taken = {
            "block.1.query.lora_A": new["block.1.query.lora_A"][:cut],
            "block.1.query.lora_B": new["block.1.query.lora_B"][:, :cut],
        }
        torch.testing.assert_close(
            product(taken) / SCALE, U[:, :cut] * S[:cut] @ Vt[:cut], atol=1e-6, rtol=1e-5
        )
        assert float((product(taken) / SCALE - wanted).norm()) == pytest.approx(
            float(S[cut:].norm()), abs=1e-5
        )
    np.testing.assert_allclose(new["head.weight"].numpy(), numpy_mean(answers, "head.weight"), atol=1e-7)


def test_svd_of_one_client_is_its_product(generator):
    (alone,) = updates(generator, weights=(3,), shapes=PAIR)
    new = svd(dict(alone.arrays), [alone], 2)
    torch.testing.assert_close(product(new), product(alone.arrays), atol=1e-6, rtol=1e-5)


def test_svd_leaves_no_direction_without_a_gradient(generator):
    """Where the product lacks directions, B is zero and A what it was, as at the start."""
    shared = updates(generator, weights=(1,), shapes=PAIR)[0].arrays
    answers = updates(generator, shapes=PAIR)
    for update in answers:
        update.arrays["block.1.query.lora_B"].zero_()
    new = svd(shared, answers, 2)
    assert (
        torch.equal(new["block.1.query.lora_A"], shared["block.1.query.lora_A"])
        and not new["block.1.query.lora_B"].any()
    )
    answers[0].arrays["block.1.query.lora_B"][:, 0] = 1.0
    new = svd(shared, answers, 2)
    assert (
        torch.equal(new["block.1.query.lora_A"][1], shared["block.1.query.lora_A"][1])
        and not new["block.1.query.lora_B"][:, 1].any()
    )
    assert new["block.1.query.lora_B"][:, 0].abs().min() > 0
