"""The frozen linear layers of a backbone, and which kernel computes their products.

PyTorch itself computes a float32 product by MKL on x86. Its wheel also holds oneDNN. Which is faster depends
on the CPU: on an AMD CPU of family 26 oneDNN is more than twice as fast, on one of family 25 a tenth. Both
compute in float32; the last bits differ. So a run chooses once and keeps to its choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Kernel = Literal["torch", "onednn"]
"""`torch` is the one that PyTorch takes by itself."""

GAIN = 1.3
"""How many times as fast oneDNN must be to be chosen. It lies far from both cases above, so that two runs on
one machine choose the same."""
LEAST_WEIGHTS = 2**14
"""Weights of the largest layer below which a call takes as long as its product."""
ROWS, TURNS = 256, 5
"""Rows of a measured product, and how often it is measured."""
KERNELS: tuple[Kernel, ...] = get_args(Kernel)


class FrozenLinear(nn.Linear):
    """A linear layer that is never trained: the way back gives its input's gradient alone.

    Attributes:
        kernel: computes its products where they are in float32 on a CPU.
    """

    kernel: Kernel = "torch"
    _there: Tensor | None = None
    _back: Tensor | None = None

    @classmethod
    def of(cls, linear: nn.Linear) -> FrozenLinear:
        """The same layer, with the same weights."""
        has_bias = linear.bias is not None
        layer = cls(linear.in_features, linear.out_features, has_bias, device="meta").train(linear.training)
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer

    def use(self, kernel: Kernel) -> None:
        """Compute products by this kernel from now on. Weights must stay as they are while it is oneDNN."""
        self.kernel, self._there, self._back = kernel, None, None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        if self.kernel == "torch":
            return super().forward(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Product.apply(x, self)  # type: ignore[no-any-return, no-untyped-call]
        return self.there(x)

    # oneDNN reads weights in an order of its own. They are laid out at their first use in each direction.

    def there(self, x: Tensor) -> Tensor:
        """W x + b by oneDNN."""
        if self._there is None:
            self._there = _laid_out(self.weight)
        return _product(x, self._there, self.bias)

    def back(self, gradient: Tensor) -> Tensor:
        """The gradient of the output [..., out] -> that of the input [..., in], by oneDNN."""
        if self._back is None:
            self._back = _laid_out(self.weight.t())
        return _product(gradient.contiguous(), self._back, None)


class _Product(torch.autograd.Function):
    """Keeps neither input nor output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return layer.there(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.back(gradient), None


@torch.no_grad()
def _laid_out(weight: Tensor) -> Tensor:
    made: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
    return made


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made


@cache
def has_onednn() -> bool:
    """Whether this PyTorch has oneDNN's products. The operations are private ones and may go."""
    one = torch.eye(2)
    try:
        return torch.equal(_product(one, _laid_out(one), None), one)
    except (AttributeError, RuntimeError, TypeError):
        return False


def fastest(layers: Sequence[FrozenLinear]) -> Kernel:
    """The kernel for layers of these shapes, by a measurement that a process does once.

    It takes about 100 ms. Its clock counts the time of this thread, so that other programs hardly matter.
    """
    shapes = {(layer.out_features, layer.in_features): layer for layer in layers}
    key = frozenset(shapes)
    if key not in _measured:
        large = max(out * inner for out, inner in shapes) >= LEAST_WEIGHTS
        _measured[key] = _measure(list(shapes.values())) if large and has_onednn() else "torch"
    return _measured[key]


_measured: dict[frozenset[tuple[int, int]], Kernel] = {}


def _measure(layers: Sequence[FrozenLinear]) -> Kernel:
    plain = fast = 0.0
    for layer in layers:
        x = torch.ones(ROWS, layer.in_features)
        layer.there(x)  # lays the weights out
        turns = [
            (_seconds(nn.Linear.forward, layer, x), _seconds(FrozenLinear.there, layer, x))
            for _ in range(TURNS)
        ]
        plain += min(one for one, _ in turns)
        fast += min(other for _, other in turns)
    return "onednn" if plain > GAIN * fast else "torch"


@torch.no_grad()
def _seconds(way: Callable[[Any, Tensor], Tensor], layer: FrozenLinear, x: Tensor) -> float:
    began = time.thread_time()
    way(layer, x)
    return time.thread_time() - began
