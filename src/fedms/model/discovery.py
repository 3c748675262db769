"""Where a transformer keeps its blocks, and which of their layers carry pairs: found in the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedms.core.errors import ConfigError, FedmsError

QUERY = ("query", "q_proj", "q_lin", "query_proj", "q")
VALUE = ("value", "v_proj", "v_lin", "value_proj", "v")
FUSED = ("Wqkv", "qkv_proj", "query_key_value", "c_attn", "qkv")
"""One layer for query, key and value together."""
ALL_LINEAR = "all-linear"
"""In `lora.targets`: every linear layer of a block."""


def find_blocks(model: nn.Module, name: str, by_hand: str | None = None) -> str:
    """The path of the list of blocks: the outermost list of modules of one class with the most weights.

    Args:
        name: `model.name`, for messages.
        by_hand: `model.blocks`, which is taken as it is.

    Raises:
        FedmsError: there is no such list.
    """
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and len({type(each) for each in module}) == 1
    }
    if by_hand is not None:
        if by_hand in lists:
            return by_hand
        known = ", ".join(lists) or "none"
        raise ConfigError(f"model.blocks: {by_hand!r} is no list of blocks in {name}; allowed: {known}")
    outer = {
        path: module
        for path, module in lists.items()
        if not any(path.startswith(f"{other}.") for other in lists)
    }
    if not outer:
        raise FedmsError(f"model {name}: has no list of blocks of one class, so none can be active alone")
    sizes: dict[str, int] = {}
    for path, module in outer.items():
        sizes[path] = sum(each.numel() for each in module.parameters())
    largest: str = max(sizes, key=lambda path: sizes[path])
    return largest


def find_targets(blocks: Sequence[nn.Module], name: str) -> tuple[str, ...]:
    """The layers of query and value by the last part of their names, or the fused layer of both.

    Raises:
        FedmsError: they have none of the usual names.
    """
    layers = linear_layers(blocks[0])
    last = [layer.rpartition(".")[2] for layer in layers]
    for wanted in ((QUERY, VALUE), (FUSED,)):
        found = [next((each for each in last if each in names), None) for names in wanted]
        if all(found) and all(last.count(str(each)) == 1 for each in found):
            return tuple(str(each) for each in found)
    raise FedmsError(
        f"model {name}: no query and value were found in a block; name layers in lora.targets, "
        f"such as {', '.join(list(layers)[:4]) or 'none'}"
    )


def linear_layers(block: nn.Module) -> dict[str, Any]:
    """The linear layers of a block by name; GPT-2's `Conv1D` is one."""
    from transformers.pytorch_utils import Conv1D

    return {name: each for name, each in block.named_modules() if isinstance(each, nn.Linear | Conv1D)}


def without_transposed(model: nn.Module) -> tuple[str, ...]:
    """Replace GPT-2's `Conv1D`, which keeps a transposed weight, by a linear layer of the same values.

    Returns:
        The names of these layers. PEFT calls such a layer `fan_in_fan_out`.
    """
    from transformers.pytorch_utils import Conv1D

    names = [name for name, each in model.named_modules() if isinstance(each, Conv1D)]
    for name in names:
        parent, _, last = name.rpartition(".")
        old: Any = model.get_submodule(name)
        inputs, outputs = old.weight.shape
        layer = nn.Linear(inputs, outputs, device="meta").train(old.training)
        layer.weight = nn.Parameter(old.weight.t(), requires_grad=False)
        layer.bias = old.bias
        setattr(model.get_submodule(parent), last, layer)
    return tuple(names)
