"""Trained arrays on their way up in fewer bytes (`federation.uplink`).

What travels is the difference to the start that client and server both know, rounded at random to a
neighbouring code such that its expectation is the difference itself (QSGD: Alistarh et al., arXiv
1610.02132). So errors of many clients and rounds cancel out. `int8` and `int4` have one scale for each row of
a matrix, of its longer side: for each row of A, each column of B; a vector has one scale. An error is less
than one quantum, which is the scale.

Names and shapes are known on both sides. So all codes travel as one vector and all scales as another, in the
order of names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedms.config.federation import Uplink
from fedms.federation.exchanges.checks import RefusalError, check_finite, check_shapes
from fedms.model.arrays import Arrays

CODES, SCALES = "uplink.codes", "uplink.scales"
"""Names of the arrays that travel."""
LARGEST_CODE = {"int8": 127, "int4": 7}
BFLOAT16_STEP = 2.0**-7
"""Distance of neighbouring bfloat16 numbers at most, as a fraction of the number."""
SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""Below it a row counts as zero, for numbers so small lose their precision."""
Draw = Callable[[str], torch.Generator]
"""The generator of the roundings of an array, by its name."""


def packed(trained: Mapping[str, Tensor], starts: Mapping[str, Tensor], form: Uplink, draw: Draw) -> Arrays:
    """What travels of these arrays, whose starts the server knows."""
    if form == "float32" or not trained:
        return dict(trained)
    names = sorted(trained)
    rows = {name: _rows(trained[name].detach().cpu().float() - starts[name]) for name in names}
    if form == "bfloat16":
        return {CODES: torch.cat([_bfloat16(rows[name], draw(name)).flatten() for name in names])}
    coded = [_codes(rows[name], LARGEST_CODE[form], draw(name)) for name in names]
    codes = torch.cat([each.flatten() for each, _ in coded])
    scales = torch.cat([scale for _, scale in coded])
    return {CODES: _two_a_byte(codes) if form == "int4" else codes, SCALES: scales}


def unpacked(arrays: Mapping[str, Tensor], starts: Mapping[str, Tensor], form: Uplink) -> Arrays:
    """The trained arrays again, each within a quantum of what it was.

    Raises:
        RefusalError: `packed` makes no such arrays from arrays with these starts.
    """
    if form == "float32" or not starts:
        return dict(arrays)
    numbers = sum(start.numel() for start in starts.values())
    if form == "bfloat16":
        check_shapes(arrays, {CODES: torch.empty(numbers, dtype=torch.bfloat16, device="meta")})
        return _moved(starts, arrays[CODES].float())
    rows = {name: _rows(starts[name]).shape[0] for name in sorted(starts)}
    bytes_of_codes = -(-numbers // 2) if form == "int4" else numbers
    kind = torch.uint8 if form == "int4" else torch.int8
    wanted = {
        CODES: torch.empty(bytes_of_codes, dtype=kind, device="meta"),
        SCALES: torch.empty(sum(rows.values()), device="meta"),
    }
    check_shapes(arrays, wanted)
    check_finite(arrays)
    if arrays[SCALES].lt(0).any():
        raise RefusalError(f"{SCALES} are below zero")
    codes = _one_a_byte(arrays[CODES], numbers) if form == "int4" else arrays[CODES]
    if codes.lt(-LARGEST_CODE[form]).any():
        raise RefusalError(f"{CODES} are below {-LARGEST_CODE[form]}")
    repeats = [_rows(starts[name]).shape[1] for name in rows for _ in range(rows[name])]
    return _moved(starts, codes * arrays[SCALES].repeat_interleave(torch.tensor(repeats, dtype=torch.long)))


def overshoot(form: Uplink) -> float:
    """How much further from its start an array can come out than it was, as a fraction. A code never exceeds
    the largest number of its row; a bfloat16 number may.
    """
    return BFLOAT16_STEP if form == "bfloat16" else 0.0


def _moved(starts: Mapping[str, Tensor], differences: Tensor) -> Arrays:
    """The starts with these differences added, which stand one after the other in the order of names."""
    found, begin = {}, 0
    for name in sorted(starts):
        start = starts[name].cpu()
        end = begin + start.numel()
        found[name] = start + _unrows(differences[begin:end], start)
        begin = end
    return found


def _rows(array: Tensor) -> Tensor:
    """As a matrix [rows, columns] that is at least as wide as high; each row gets a scale."""
    if array.numel() == 0:
        return array.reshape(0, 1)
    matrix = array.reshape(-1, array.shape[-1]) if array.dim() else array.reshape(1, 1)
    return matrix.T if len(matrix) > matrix.shape[1] else matrix


def _unrows(numbers: Tensor, like: Tensor) -> Tensor:
    """The numbers of `_rows` in the shape of the array."""
    if like.numel() and like.dim() and like.numel() // like.shape[-1] > like.shape[-1]:
        return numbers.reshape(like.shape[-1], -1).T.reshape(like.shape)
    return numbers.reshape(like.shape)


def _codes(rows: Tensor, largest: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Codes (int8) of a matrix, and the scale of each row."""
    if not rows.numel():
        return rows.to(torch.int8), rows.new_empty(0)
    scales = rows.abs().amax(1) / largest
    scales = torch.where(scales < SMALLEST_SCALE, 0.0, scales)
    steps = rows / torch.where(scales > 0, scales, torch.inf)[:, None]
    codes = (steps + torch.rand(rows.shape, generator=generator)).floor()
    return codes.clamp(-largest, largest).to(torch.int8), scales


def _bfloat16(array: Tensor, generator: torch.Generator) -> Tensor:
    """Each number rounded to one of its two neighbours, by chance: its upper 16 bits, after a random number
    was added to the lower.
    """
    bits = array.contiguous().view(torch.int32)
    noise = torch.randint(0, 2**16, array.shape, generator=generator, dtype=torch.int32)
    rounded = ((bits + noise) & -(2**16)).view(torch.float32)
    return torch.where(array.isfinite(), rounded, array).to(torch.bfloat16)


def _two_a_byte(codes: Tensor) -> Tensor:
    """int4 codes in pairs, the lower half of a byte first; an odd one is followed by zero."""
    low, high = codes[0::2] & 15, codes[1::2] & 15
    high = torch.cat([high, high.new_zeros(len(low) - len(high))])
    return (low | high << 4).view(torch.uint8)


def _one_a_byte(pairs: Tensor, count: int) -> Tensor:
    """The codes of `_two_a_byte`.

    Raises:
        RefusalError: what follows an odd code is not zero.
    """
    halves = torch.stack([pairs & 15, pairs >> 4], 1).flatten().view(torch.int8)
    codes = (halves ^ 8) - 8  # bit 3 is the sign
    if codes[count:].any():
        raise RefusalError(f"{CODES} go on after their end")
    return codes[:count]
