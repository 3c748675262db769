"""One layer and its pair: h = W x + (alpha / r) B A x; new pairs depend only on seed and block."""

import math

import pytest
import torch
from torch import nn

from fedms.model.lora import LoraLinear, Pair
from fedms.model.parts import fresh_lora


def merged(lora):
    """A plain linear layer that computes the same."""
    layer = nn.Linear(lora.base.in_features, lora.base.out_features, bias=lora.base.bias is not None)
    layer.load_state_dict(lora.base.state_dict())
    if lora.pair is not None:
        with torch.no_grad():
            layer.weight += lora.pair.scale * (lora.pair.B @ lora.pair.A)
            if lora.pair.residual is not None:
                layer.weight += lora.pair.residual
    return layer


def layer(bias=True, residual=False):
    torch.manual_seed(0)
    lora = LoraLinear(nn.Linear(6, 5, bias=bias).requires_grad_(False))
    lora.pair = Pair(torch.randn(3, 6), torch.randn(5, 3), 0.7, torch.randn(5, 6) if residual else None)
    return lora


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_merged_equals_unmerged_and_the_formula(bias, residual):
    lora, x = layer(bias, residual), torch.randn(4, 2, 6)
    weight = lora.base.weight + 0.7 * lora.pair.B @ lora.pair.A + (lora.pair.residual if residual else 0)
    expected = x @ weight.T + (lora.base.bias if bias else 0)
    before = lora.base.weight.clone()
    torch.testing.assert_close(lora(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged(lora)(x), expected, atol=1e-5, rtol=1e-5)
    assert (merged(lora).bias is not None) == bias
    assert torch.equal(lora.base.weight, before), "merging changed the frozen weight"


def test_without_a_pair_the_layer_is_the_frozen_layer():
    lora, x = layer(), torch.randn(4, 6)
    lora.pair = None
    assert torch.equal(lora(x), lora.base(x))
    assert torch.equal(merged(lora).weight, lora.base.weight)
    assert not lora(x).requires_grad


def test_the_residual_gets_no_gradient():
    lora = layer(residual=True)
    A, B = lora.pair.A.clone().requires_grad_(), lora.pair.B.clone().requires_grad_()
    lora.pair = Pair(A, B, 0.7, lora.pair.residual)
    lora(torch.randn(4, 6)).sum().backward()
    assert A.grad.abs().max() > 0
    assert B.grad.abs().max() > 0
    assert lora.pair.residual.grad is None


def test_a_fresh_pair_depends_on_seed_and_block_alone(backbone):
    together = fresh_lora(backbone, [2, 0, 1], 4, seed=5)
    torch.manual_seed(99)
    apart = {
        name: array for block in (1, 2, 0) for name, array in fresh_lora(backbone, [block], 4, seed=5).items()
    }
    assert together.keys() == apart.keys()
    assert all(torch.equal(together[name], apart[name]) for name in together)


def test_fresh_pairs_differ_between_blocks_targets_seeds_and_purposes(backbone):
    first, other = fresh_lora(backbone, range(3), 4, 0), fresh_lora(backbone, [0], 4, 1)
    private = fresh_lora(backbone, [0], 4, 0, "client-1")
    matrices = [
        array
        for arrays in (first, other, private)
        for name, array in arrays.items()
        if name.endswith("lora_A")
    ]
    assert len({array.numpy().tobytes() for array in matrices}) == len(matrices) == 3 * 2 + 2 + 2


def test_a_fresh_pair_is_random_in_a_and_zero_in_b(backbone):
    arrays = fresh_lora(backbone, [1], 4, 0)
    assert list(arrays) == [
        f"block.1.{target}.lora_{matrix}" for target in ("query", "value") for matrix in "AB"
    ]
    assert arrays["block.1.query.lora_A"].shape == (4, 32)
    assert arrays["block.1.query.lora_B"].shape == (32, 4)
    assert not arrays["block.1.query.lora_B"].any()
    assert 0.5 / math.sqrt(32) < arrays["block.1.query.lora_A"].abs().max() <= 1 / math.sqrt(32)
