"""Several clients' experts stacked, so that they run and train as one batch.

Every array has a first dimension more, over the experts. A batch has n samples of each expert, in the same
order: the first n of K n samples are the first expert's. Experts share no number, so each has its own
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedms.model.arrays import Arrays
from fedms.model.expert import Expert
from fedms.model.parts import part_of


class Stack(Expert):
    """Experts with the same names, shapes and scale; they have only parts that run in a batch."""

    def __init__(self, experts: Sequence[Expert]) -> None:
        names = experts[0].arrays
        super().__init__(
            {name: torch.stack([each.arrays[name] for each in experts]) for name in names}, experts[0].scale
        )

    def __len__(self) -> int:
        return len(self.arrays["head.weight"])

    def member(self, number: int) -> Arrays:
        """The present arrays of one expert."""
        return {name: array[number].detach().clone() for name, array in self.arrays.items()}

    def keep(self, count: int, optimizer: torch.optim.Optimizer) -> None:
        """Drop all experts after the first `count`, with their part of the optimizer's state."""
        leaves = {id(array): name for name, array in self.arrays.items() if array.requires_grad}
        self.arrays = {
            name: array.detach()[:count].clone().requires_grad_(array.requires_grad)
            for name, array in self.arrays.items()
        }
        for group in optimizer.param_groups:
            old = group["params"]
            group["params"] = [self.arrays[leaves[id(leaf)]] for leaf in old]
            for before, leaf in zip(old, group["params"], strict=True):
                gathered = optimizer.state.pop(before)
                optimizer.state[leaf] = {
                    what: value[:count].clone() if value.dim() else value for what, value in gathered.items()
                }

    def _head(self, name: str, x: Tensor) -> Tensor:
        weight, bias, log_scale = (self.arrays[f"{name}.{part}"] for part in ("weight", "bias", "log_scale"))
        raw = torch.baddbmm(bias[:, None], x.view(len(weight), -1, x.shape[1]), weight.mT)
        return (raw * log_scale.exp()[:, :, None]).flatten(0, 1)


def can_stack(expert: Expert) -> bool:
    """Whether an expert has only parts that run in a batch of several clients (pairs and head)."""
    return expert.weight is None and all(
        (part := part_of(name)) is not None and part.can_batch and not name.endswith(".residual")
        for name in expert.arrays
    )
