"""Frozen products by oneDNN are those of PyTorch's own kernel, and the faster of the two is found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedms.core.errors import ConfigError
from fedms.model import kernels
from fedms.model.kernels import FrozenLinear, fastest, has_onednn
from fedms.model.lora import Pair
from fedms.model.parts import fresh_lora

onednn = pytest.mark.skipif(not has_onednn(), reason="this PyTorch has no oneDNN")


def layer(inner: int = 6, out: int = 5, bias: bool = True) -> FrozenLinear:
    torch.manual_seed(0)
    return FrozenLinear.of(nn.Linear(inner, out, bias=bias).requires_grad_(False))


def both(frozen: FrozenLinear, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Output and input gradient by PyTorch's own kernel and by oneDNN."""
    found = []
    for kernel in kernels.KERNELS:
        frozen.use(kernel)
        at = x.clone().requires_grad_()
        out = frozen(at)
        (out * torch.linspace(-1, 1, out.shape[-1])).sum().backward()
        assert at.grad is not None
        found.append((out.detach(), at.grad))
    return found


@onednn
@pytest.mark.parametrize("shape", [(4,), (1, 1), (3, 7)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradient_are_those_of_the_plain_layer(shape, bias):
    frozen = layer(bias=bias)
    (plain, plain_gradient), (fast, fast_gradient) = both(frozen, torch.randn(*shape, 6))
    assert fast.shape == (*shape, 5)
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast_gradient, plain_gradient, atol=1e-5, rtol=1e-5)


@onednn
def test_operands_need_not_lie_in_order():
    frozen = layer()
    x = torch.randn(6, 4).t()
    (plain, _), (fast, _) = both(frozen, x)
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    frozen.use("onednn")
    turned = torch.randn(4, 6, requires_grad=True)
    frozen(turned).t().sum(1).sum().backward()
    assert turned.grad is not None
    torch.testing.assert_close(turned.grad, frozen.weight.sum(0).expand(4, 6), atol=1e-5, rtol=1e-5)


def test_a_frozen_layer_shares_the_weights_and_draws_no_number():
    linear, before = nn.Linear(6, 5), torch.get_rng_state()
    frozen = FrozenLinear.of(linear)
    assert frozen.weight is linear.weight and frozen.bias is linear.bias
    assert torch.equal(torch.get_rng_state(), before)


@onednn
def test_a_backbone_trains_its_pairs_alike_by_both_kernels(backbone, monkeypatch):
    asked, product = [], kernels._product
    monkeypatch.setattr(kernels, "_product", lambda *given: (asked.append(given), product(*given))[1])
    pairs = fresh_lora(backbone, range(backbone.depth), 2, 0)
    made = {name: array + 0.1 for name, array in pairs.items()}
    found = {}
    for kernel in kernels.KERNELS:
        backbone.use(kernel)
        leaves = {name: array.clone().requires_grad_() for name, array in made.items()}
        attached = {
            (block, target): Pair(
                leaves[f"block.{block}.{target}.lora_A"], leaves[f"block.{block}.{target}.lora_B"], 2.0
            )
            for block, target in backbone.layers
        }
        backbone.attach(attached)
        feature = backbone.feature(torch.tensor([[2, 5, 6, 3], [2, 7, 8, 3]]), None)
        feature.square().sum().backward()
        found[kernel] = [feature.detach(), *(leaf.grad for leaf in leaves.values())]
    assert len(found["torch"]) == 1 + 4 * backbone.depth
    for plain, fast in zip(*found.values(), strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-4)
    # there, 6 layers of a block; back, 3 fewer in block 0, below whose query, key and value nothing trains
    assert len(asked) == 6 * backbone.depth + 6 * backbone.depth - 3


# the choice


@pytest.fixture
def times(monkeypatch):
    """Sets what the measurement finds: how many times as fast oneDNN is."""
    monkeypatch.setattr(kernels, "_measured", {})

    def gain(times: float) -> list[object]:
        asked: list[object] = []

        def seconds(way, frozen, x) -> float:
            asked.append(way)
            return times if way is nn.Linear.forward else 1.0

        monkeypatch.setattr(kernels, "_seconds", seconds)
        return asked

    return gain


@onednn
@pytest.mark.parametrize(("gain", "chosen"), [(0.5, "torch"), (1.14, "torch"), (2.2, "onednn")])
def test_onednn_is_chosen_where_it_is_much_faster(times, gain, chosen):
    times(gain)
    assert fastest([layer(128, 128)]) == chosen


@onednn
def test_a_process_measures_once_for_the_same_shapes(times):
    asked = times(2.2)
    assert fastest([layer(128, 128), layer(128, 128)]) == "onednn"
    assert len(asked) == 2 * kernels.TURNS, "layers of one shape need one measurement"
    times(0.5)
    assert fastest([layer(128, 128)]) == "onednn"
    assert fastest([layer(128, 256)]) == "torch"


def test_small_layers_are_not_measured(times):
    asked = times(2.2)
    assert fastest([layer()]) == "torch" and not asked


def test_without_the_private_operations_the_plain_path_is_taken(times, monkeypatch):
    asked = times(2.2)
    monkeypatch.setattr(kernels, "has_onednn", lambda: False)
    assert fastest([layer(128, 128)]) == "torch" and not asked


def test_another_precision_takes_the_plain_path_and_refuses_onednn_by_name(backbone):
    backbone.to_device("cpu", torch.bfloat16)
    assert backbone.use("auto").kernel == "torch"
    with pytest.raises(ConfigError, match=r"engine\.kernels: onednn needs device: cpu, precision: float32"):
        backbone.use("onednn")


@onednn
def test_weights_that_move_are_not_computed_with_as_they_were(backbone):
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        backbone.use("onednn").feature(ids, None)
        backbone.frozen[0].weight.mul_(2)
        moved = backbone.to_device("cpu").use("onednn").feature(ids, None)
        torch.testing.assert_close(moved, backbone.use("torch").feature(ids, None), atol=1e-5, rtol=1e-5)
