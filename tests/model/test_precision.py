"""A backbone in bfloat16: nearly the same features, half of the memory, and training in float32."""

import numpy as np
import pytest
import torch
from test_backbone import IMAGE, TEXT, inputs_for
from torch.nn import functional as F

from fedms.config.sections import LoraConfig, ModelConfig
from fedms.data.federated import Samples
from fedms.model.arrays import is_real
from fedms.model.backbone import MASKED
from fedms.model.batched import Stack
from fedms.model.checkpoints import load_backbone
from fedms.model.expert import Expert
from fedms.model.heads import zero_head
from fedms.model.parts import fresh_lora, fresh_parts
from fedms.training.inputs import TextInputs
from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import Runner

HALF = torch.bfloat16
TOLERANCE = 2**-5
"""Of values of about 1 after a few blocks in bfloat16. Its rounding unit is 2 to the power of -8."""


def opened(folder, dtype=HALF):
    return load_backbone(ModelConfig(name=str(folder)), LoraConfig()).to_device("cpu", dtype)


def size(backbone) -> int:
    return sum(each.numel() * each.element_size() for each in backbone.model.parameters())


@pytest.mark.parametrize("family", TEXT + IMAGE)
@torch.no_grad()
def test_features_are_nearly_those_of_float32_from_half_of_the_memory(checkpoint, family):
    exact, half = opened(checkpoint(family), torch.float32), opened(checkpoint(family))
    inputs, lengths = inputs_for(family)
    assert half.embed(inputs).dtype == half.run(half.embed(inputs), lengths).dtype == HALF
    feature, expected = half.feature(inputs, lengths), exact.feature(inputs, lengths)
    assert feature.dtype == torch.float32 and not torch.equal(feature, expected)
    assert F.cosine_similarity(feature, expected).min() > 0.999
    after = sum(
        each.numel() for path in half.family.after for each in half.model.get_submodule(path).parameters()
    )
    after += 32 * 24 if half.family.projection else 0
    assert size(half) == (size(exact) + 4 * after) // 2


@pytest.mark.parametrize("family", TEXT)
@torch.no_grad()
def test_padding_stays_hidden(checkpoint, family):
    """The lengths's value is finite in both precisions, else its sums would not be numbers."""
    backbone = opened(checkpoint(family))
    masked = torch.tensor(MASKED)
    assert torch.equal(masked.to(HALF).float(), masked) and masked.isfinite() and masked < -1e30
    ids, lengths = inputs_for(family)
    together = backbone.feature(ids, lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(
            backbone.feature(ids[row : row + 1, :length], None)[0], together[row], atol=4 * TOLERANCE, rtol=0
        )


def experts(backbone, kind: str) -> Expert:
    """An expert of one of the kinds that methods train, with pairs that change the outputs."""

    def pairs(seed: int):
        drawn = torch.Generator().manual_seed(seed)
        fresh = fresh_lora(backbone, [1, 2], 2, seed)
        return {
            name: torch.randn(array.shape, generator=drawn) / 4 if name.endswith("B") else array
            for name, array in fresh.items()
        }

    arrays = pairs(0) | zero_head(3, backbone.feature_size)
    arrays["head.weight"] = torch.randn(3, backbone.feature_size, generator=torch.Generator().manual_seed(3))
    if kind == "residual":
        arrays |= {
            f"block.{block}.query.residual": torch.randn(
                32, 32, generator=torch.Generator().manual_seed(block)
            )
            for block in (1, 2)
        }
    if kind == "mixer":
        arrays |= {f"beside.{name}": array for name, array in pairs(7).items()} | fresh_parts(
            backbone, ["mixer"], [1, 2], 0, 0
        )
    if kind == "prompt":
        arrays |= fresh_parts(backbone, ["prompt"], [], 3, 0)
    weight = None
    if kind == "blend":
        arrays |= {
            f"beside.{name}": array
            for name, array in (pairs(7) | zero_head(3, backbone.feature_size)).items()
        }
        weight = torch.linspace(0, 1, 4)
    return Expert(arrays, 2.0, weight)


def computing(backbone, folder) -> tuple[Runner, Samples]:
    class Numbers:
        pad_token_id = 0

        def __call__(self, texts, **options):
            return {"input_ids": [[2, *map(int, text.split()), 3] for text in texts]}

    inputs = TextInputs(["5 6 7", "8", "9 10 11 12 13", "14 15"], Numbers(), 24)
    cache = PrefixCache(backbone, inputs, 2**20, 0, folder)
    return Runner(backbone, cache), Samples("client-1/train", np.arange(4), torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize("kind", ["pairs", "residual", "mixer", "prompt", "blend", "stack"])
def test_whatever_trains_gets_gradients_of_float32_that_are_nearly_the_same(checkpoint, tmp_path, kind):
    found = []
    for dtype in (torch.float32, HALF):
        backbone = opened(checkpoint("bert"), dtype)
        compute, samples = computing(backbone, tmp_path)
        expert = experts(backbone, kind)
        if kind == "stack":
            expert = Stack(
                [expert, Expert({name: -array for name, array in expert.arrays.items()}, expert.scale)]
            )
        names = [
            name
            for name in expert.arrays
            if not name.startswith("beside.") and not name.endswith((".residual", "log_scale"))
        ]
        leaves = expert.train(names)
        boundary = 0 if kind == "prompt" else 1
        logits = expert.logits(compute.feature(expert, samples, boundary, np.arange(4)))
        assert logits.dtype == torch.float32
        F.cross_entropy(logits, samples.labels).backward()
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        assert len(gradients) == len(leaves)
        assert {leaf.dtype for leaf in leaves} == {each.dtype for each in gradients} == {torch.float32}
        found.append((logits.detach(), torch.cat([each.flatten() for each in gradients])))
    (exact, gradient), (near, other) = found
    torch.testing.assert_close(near, exact, atol=4 * TOLERANCE * float(exact.abs().max()), rtol=0)
    assert not torch.equal(near, exact)
    assert F.cosine_similarity(gradient, other, dim=0) > 0.99


@pytest.mark.parametrize("memory", [2**20, 0])
def test_the_cache_holds_the_very_values_in_half_of_the_room(checkpoint, tmp_path, memory):
    backbone = opened(checkpoint("bert"))
    compute, samples = computing(backbone, tmp_path / "cache")
    cache, tokens = compute.cache, int(compute.cache.inputs.lengths(samples.rows).sum())
    cache.places.memory, cache.places.disk = memory, 2**20
    kept, lengths = cache.hidden(samples, 2, np.arange(4))
    assert kept.dtype == HALF
    assert [path.stat().st_size for path in cache.places.folder.glob("*")] == (
        [] if memory else [tokens * backbone.width * 2]
    )
    cache.enabled = False
    fresh, _ = cache.hidden(samples, 2, np.arange(4))
    assert lengths is not None
    real = is_real(lengths, kept.shape[1])
    assert torch.equal(kept[real], fresh[real])
