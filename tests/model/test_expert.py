"""An expert: heads that start as they say, and training that touches the named arrays alone."""

import math
from dataclasses import replace

import pytest
import torch

from fedms.model.arrays import block_of, split_name
from fedms.model.expert import Expert
from fedms.model.heads import NEAREST_SCALE, head, nearest_head, statistics_head, zero_head
from fedms.model.parts import fresh_lora, trained_names
from fedms.model.statistics import FeatureSums, normalise


@pytest.fixture
def features(generator):
    return torch.randn(40, 8, generator=generator) + 1.0


def test_the_statistics_head_says_the_discriminants_posterior(features):
    labels = torch.arange(40) % 3
    features = features + 2 * torch.nn.functional.one_hot(labels, 8)
    x = normalise(features)
    for temperature in (1.0, 5.6):
        discriminant = replace(FeatureSums.of(x, labels, 3).discriminant(), temperature=temperature)
        posterior = (discriminant.scores(x) + discriminant.prior.log()).softmax(1)
        made = Expert(statistics_head(discriminant), 1.0).logits(features).softmax(1)
        torch.testing.assert_close(made, posterior, atol=1e-5, rtol=1e-4)
        assert posterior.std() > 0.1


@pytest.mark.parametrize("frozen", [True, False])
def test_the_nearest_head_is_the_scaled_cosine(features, generator, frozen):
    embeddings = torch.randn(5, 8, generator=generator) * 3
    cosine = torch.nn.functional.cosine_similarity(features[:, None], embeddings[None], dim=-1)
    arrays = nearest_head(embeddings, frozen)
    torch.testing.assert_close(
        Expert(arrays, 1.0).logits(features), NEAREST_SCALE * cosine, atol=1e-4, rtol=1e-4
    )
    assert arrays["head.log_scale"].item() == pytest.approx(math.log(NEAREST_SCALE) if frozen else 0.0)


def test_the_zero_head_is_uniform(features):
    torch.testing.assert_close(
        Expert(zero_head(4, 8), 1.0).logits(features).softmax(1), torch.full((40, 4), 0.25)
    )


def test_a_head_reads_directions_not_lengths(features, generator):
    expert = Expert(head(torch.randn(3, 8, generator=generator), torch.ones(3), 0.5), 1.0)
    torch.testing.assert_close(expert.logits(features), expert.logits(features * 9))
    by_hand = math.exp(0.5) * (normalise(features) @ expert.arrays["head.weight"].T + 1)
    torch.testing.assert_close(expert.logits(features), by_hand)


def test_training_makes_leaves_of_the_named_arrays_alone(backbone, features):
    arrays = fresh_lora(backbone, [1, 2], 4, 0) | zero_head(3, 8)
    before = {name: array.clone() for name, array in arrays.items()}
    expert = Expert(arrays, 1.0)
    names = trained_names(backbone, ("B", "head"), [2], "linear")
    leaves = expert.train(names)
    assert {name for name, array in expert.arrays.items() if array.requires_grad} == set(names)
    assert all(leaf is expert.arrays[name] and leaf.is_leaf for leaf, name in zip(leaves, names, strict=True))
    with torch.no_grad():
        for leaf in leaves:
            leaf.add_(1.0)
    assert all(torch.equal(arrays[name], before[name]) for name in arrays), (
        "training reached into the arrays it came from"
    )
    expert.train(["head.bias"])
    assert [name for name, array in expert.arrays.items() if array.requires_grad] == ["head.bias"]
    assert torch.equal(expert.arrays["head.bias"], torch.ones(3)), "what was trained before is kept"
    assert not any(array.requires_grad for array in expert.detached().values())


def test_heads_train_what_their_kind_says(backbone):
    def head_names(kind: str) -> list[str]:
        return trained_names(backbone, ("head",), (), kind)

    assert head_names("text") == ["head.log_scale"]
    for kind in ("statistics", "text-init", "linear"):
        assert head_names(kind) == ["head.weight", "head.bias"]
    assert set(head_names("text") + head_names("linear")) == set(zero_head(2, 2))


def test_pairs_come_from_names_with_scale_and_residual(backbone):
    arrays = fresh_lora(backbone, [0, 2], 4, 0)
    arrays["block.2.query.residual"] = torch.ones(32, 32)
    pairs = Expert(arrays | zero_head(3, 32), scale=0.25).pairs()
    assert set(pairs) == {(0, "query"), (0, "value"), (2, "query"), (2, "value")}
    assert {pair.scale for pair in pairs.values()} == {0.25}
    assert pairs[2, "value"].A is arrays["block.2.value.lora_A"]
    assert [key for key, pair in pairs.items() if pair.residual is not None] == [(2, "query")]


def test_what_is_known_is_not_drawn_and_changes_nothing_of_the_rest(backbone):
    whole = fresh_lora(backbone, [0, 2], 4, 0)
    known = {"block.0.query.lora_A", "block.0.query.lora_B", "block.2.value.lora_A"}
    rest = fresh_lora(backbone, [0, 2], 4, 0, known=known)
    assert whole.keys() - rest.keys() == {"block.0.query.lora_A", "block.0.query.lora_B"}, (
        "a pair of which only one is known is drawn"
    )
    assert all(torch.equal(rest[name], whole[name]) for name in rest)


@pytest.mark.parametrize("suffix", ["", ".lora_A", ".lora_B", ".residual"])
def test_names_split_into_block_and_dotted_target(suffix):
    assert split_name(f"block.11.attention.output.dense{suffix}") == (11, "attention.output.dense")
    assert block_of(f"block.11.attention.output.dense{suffix}") == 11
    assert block_of("head.weight") is None
