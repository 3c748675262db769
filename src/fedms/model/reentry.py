"""A transformer entered at any block: the parent's own forward pass says how each block is called.

Besides the hidden states, a block wants masks, positions and more, which differ from family to family. One
pass of the parent, in which every block hands its input on, records them for a batch of these lengths. Then
blocks run one by one. What follows the last block is the parent's pass in which the blocks give the hidden
states at hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedms.core.errors import FedmsError
from fedms.model.arrays import is_real

Standing = Callable[[int, Tensor, tuple[Any, ...], dict[str, Any]], Any]
"""What stands for a block: (number, hidden states, other arguments, keywords) -> its output"""


class _Reached(Exception):  # noqa: N818 - it is no error
    """Ends the parent's pass at a block."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class Reentry:
    """The parent of a list of blocks.

    Attributes:
        after: modules with weights that the parent runs after the last block, once `check` has run.
    """

    def __init__(self, parent: nn.Module, blocks: Sequence[nn.Module], kind: str) -> None:
        self.parent, self.blocks, self.kind = parent, blocks, kind
        self.after: list[nn.Module] = []
        config: Any = parent.config
        if getattr(config, "use_cache", False):
            config.use_cache = False  # else blocks would be handed a cache that grows
        self._extras: tuple[Any, ...] | None = None
        """What a block returns besides hidden states; None if it returns a tensor"""
        self._pixels: dict[int, tuple[int, ...]] = {}
        """Shape of an image by its number of tokens"""
        self._calls: tuple[object, list[tuple[tuple[Any, ...], dict[str, Any]]]] | None = None
        """The last batch's key and calls"""

    def embed(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Token ids or pixels -> the input of block 0."""

        def stop(number: int, hidden: Tensor, *call: Any) -> Any:
            raise _Reached(hidden)

        try:
            self._pass(self._given(inputs, lengths), stop)
        except _Reached as reached:
            if self.kind == "image":
                self._remember(tuple(inputs.shape[1:]), reached.hidden.shape[1])
            return reached.hidden
        raise RuntimeError("the parent's pass does not reach its blocks")

    def _remember(self, shape: tuple[int, ...], tokens: int) -> None:
        """Know the shape of pictures of so many tokens: positions depend on it, and hidden states lack it.

        Raises:
            FedmsError: pictures of another shape have as many tokens.
        """
        known = self._pixels.setdefault(tokens, shape)
        if known != shape:
            one, other = (" x ".join(map(str, each[-2:])) for each in (known, shape))
            raise FedmsError(
                f"pictures of {one} and of {other} pixels both have {tokens} tokens, so that their positions "
                "cannot be told apart; set model.image_size, which makes all of them square"
            )

    def run(
        self,
        hidden: Tensor,
        lengths: Tensor | None,
        start: int,
        stop: int | None,
        through: Callable[..., Any] | None = None,
    ) -> Tensor:
        """The input of block `start` -> the output of block `stop` - 1.

        `through` calls the block of this number with these arguments.
        """
        numbers = range(len(self.blocks))[start:stop]
        calls = self._called(hidden, lengths) if numbers else []
        for number in numbers:
            others, keywords = calls[number]
            call = partial(through, number) if through else self.blocks[number]
            hidden = _first(call(hidden, *others, **keywords))
        return hidden

    def end(self, hidden: Tensor) -> Tensor:
        """The last block's output -> the parent's last hidden state."""
        extras = self._extras
        out = self._pass(
            self._given(self._placeholder(hidden), None),
            lambda *call: hidden if extras is None else (hidden, *extras),
        )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def read_on(
        self, tokens: Tensor, start: int, caches: Sequence[Any], attach: Callable[[int], None]
    ) -> list[Tensor]:
        """The last block's output for the next tokens [1, t] of a sequence, once for each cache.

        A cache holds the keys and values of the tokens before. Blocks below `start` run once, with the first
        one. `attach(i)` is called before blocks run for cache i.
        """
        made: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def standing(number: int, hidden: Tensor, others: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            if number < start:
                return type(self.blocks[number]).forward(self.blocks[number], hidden, *others, **keywords)
            made.append((others, keywords))
            if number == len(self.blocks) - 1:
                raise _Reached(hidden)
            return hidden if self._extras is None else (hidden, *self._extras)

        attach(0)
        given = {"input_ids": tokens, "past_key_values": caches[0], "use_cache": True}
        reached = tokens
        try:
            self._pass(given, standing)
        except _Reached as here:
            reached = here.hidden
        found = []
        for at, cache in enumerate(caches):
            attach(at)
            hidden = reached
            for block, (others, keywords) in zip(self.blocks[start:], made, strict=True):
                own = [cache if each is caches[0] else each for each in others]
                named = {key: cache if each is caches[0] else each for key, each in keywords.items()}
                hidden = _first(block(hidden, *own, **named))
            found.append(hidden)
        return found

    def _called(self, hidden: Tensor, lengths: Tensor | None) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The other arguments of each block, for a batch like this one."""
        key = (
            hidden.shape,
            hidden.dtype,
            hidden.device,
            None if lengths is None else tuple(lengths.tolist()),
        )
        if self._calls is None or self._calls[0] != key:
            made: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
            extras = self._extras

            def record(number: int, own: Tensor, others: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
                nonlocal extras
                made.append((others, keywords))
                if len(made) == len(self.blocks):
                    raise _Reached(own)
                if extras is None:
                    return own
                if number == 0 and any(each is not None for each in extras):
                    # T5's first block makes the positions of all blocks
                    extras = tuple(type(self.blocks[0]).forward(self.blocks[0], own, *others, **keywords)[1:])
                return (own, *extras)

            with torch.no_grad(), suppress(_Reached):
                self._pass(self._given(self._placeholder(hidden), lengths), record)
            self._calls = key, made
        return self._calls[1]

    def _placeholder(self, hidden: Tensor) -> Tensor:
        """Inputs of as many tokens as these hidden states have."""
        count, tokens = hidden.shape[:2]
        if self.kind == "text":
            return torch.zeros(count, tokens, dtype=torch.long, device=hidden.device)
        dtype = next(self.parent.parameters()).dtype  # that of the embeddings, where `hidden` may be float32
        return torch.zeros(count, *self._pixels[tokens], device=hidden.device, dtype=dtype)

    def _given(self, inputs: Tensor, lengths: Tensor | None) -> dict[str, Any]:
        """The parent's own arguments."""
        if self.kind == "text":
            given: dict[str, Any] = {"input_ids": inputs}
            if lengths is not None:
                given["attention_mask"] = is_real(lengths, inputs.shape[1]).long().to(inputs.device)
            return given
        given = {"pixel_values": inputs}
        size: Any = getattr(self.parent.config, "image_size", None)
        sizes = tuple(size) if isinstance(size, list | tuple) else (size, size)
        known = inspect.signature(self.parent.forward).parameters
        if tuple(inputs.shape[-2:]) != sizes and "interpolate_pos_encoding" in known:
            given["interpolate_pos_encoding"] = True
        return given

    def _pass(self, given: dict[str, Any], standing: Standing) -> Any:
        with self._standing(standing):
            return self.parent(**given)

    @contextmanager
    def _standing(self, standing: Standing) -> Iterator[None]:
        """Inside, this stands for every block."""

        def of(number: int) -> Callable[..., Any]:
            def forward(*given: Any, **keywords: Any) -> Any:
                if given:
                    return standing(number, given[0], given[1:], keywords)
                keywords = dict(keywords)
                return standing(number, keywords.pop("hidden_states"), (), keywords)

            return forward

        for number, block in enumerate(self.blocks):
            block.__dict__["forward"] = of(number)
        try:
            yield
        finally:
            for block in self.blocks:
                block.__dict__.pop("forward", None)

    @torch.no_grad()
    def check(self, inputs: Tensor, lengths: Tensor | None, name: str) -> None:
        """Compare these samples' pass, block by block, with the parent's own.

        Raises:
            FedmsError: the parent does not call each block once and in order, or the passes differ.
        """
        if self.kind == "image":
            inputs = inputs.to(next(self.parent.parameters()).dtype)
        given = self._given(inputs, lengths)
        with self._watched() as (order, seen, outputs):
            try:
                whole = self.parent(**given).last_hidden_state
            except Exception as error:  # transformers raises many types
                line = str(error).splitlines()[0][:200]
                raise FedmsError(f"model {name}: a first pass fails: {line}") from None
        if order != list(range(len(self.blocks))):
            raise FedmsError(
                f"model {name}: its blocks do not run once each, in order; name others in model.blocks"
            )
        if any(taken is not _first(out) for taken, out in zip(seen[1:], outputs, strict=False)) and any(
            not torch.equal(taken, _first(out)) for taken, out in zip(seen[1:], outputs, strict=False)
        ):
            raise FedmsError(f"model {name}: a block does not read the output of the block below it")
        if isinstance(outputs[0], tuple):
            self._extras = tuple(outputs[0][1:])
        if len({each.shape[-1] for each in seen}) > 1 or seen[0].dim() != 3:
            raise FedmsError(
                f"model {name}: its blocks differ in width, which fedms cannot run from a block upward"
            )
        ours = self.end(self.run(self.embed(inputs, lengths), lengths, 0, None))
        counts = [inputs.shape[1]] if lengths is None else lengths.tolist()
        for mine, theirs, count in zip(ours, whole, counts * len(ours), strict=False):
            if self.kind == "text":
                mine, theirs = mine[:count], theirs[:count]
            if not theirs.isfinite().all():
                raise FedmsError(f"model {name}: its outputs are not finite")
            if not torch.equal(mine, theirs):
                raise FedmsError(f"model {name}: run block by block it gives other values than in one pass")

    @contextmanager
    def _watched(self) -> Iterator[tuple[list[int], list[Tensor], list[Any]]]:
        """Of a pass inside: the numbers of the blocks in the order in which they run, their inputs, and their
        outputs. It fills `after`.
        """
        order: list[int] = []
        seen: list[Tensor] = []
        outputs: list[Any] = []

        def before(number: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, keywords: Any) -> None:
                order.append(number)
                seen.append(args[0] if args else keywords["hidden_states"])

            return hook

        def other(module: nn.Module, args: Any, out: Any) -> None:
            if len(outputs) == len(self.blocks):
                self.after.append(module)

        handles = []
        for number, block in enumerate(self.blocks):
            handles.append(block.register_forward_pre_hook(before(number), with_kwargs=True))
            handles.append(block.register_forward_hook(lambda module, args, out: outputs.append(out)))
        inner = {id(each) for block in self.blocks for each in block.modules()}
        for module in self.parent.modules():
            if id(module) not in inner and any(True for _ in module.parameters(recurse=False)):
                handles.append(module.register_forward_hook(other))
        try:
            yield order, seen, outputs
        finally:
            for handle in handles:
                handle.remove()


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]
