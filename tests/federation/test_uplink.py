"""Trained arrays come up within a quantum, right in the mean, and as small as promised; what is no such
packet is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedms.core import seeds
from fedms.federation.exchanges.checks import RefusalError
from fedms.federation.exchanges.uplink import BFLOAT16_STEP, CODES, SCALES, overshoot, packed, unpacked

FORMS = ("bfloat16", "int8", "int4")
SHAPES = {"A": (4, 33), "B": (33, 4), "bias": (8,), "scalar": (), "deep": (2, 3, 5), "empty": (0, 5)}
LARGEST = {"int8": 127, "int4": 7}


def drawn(*purpose: str | int):
    return lambda name: seeds.torch_generator(0, *purpose, name)


def some(spread: float = 1.0, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: spread * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


STARTS = some(seed=1)
TRAINED = {name: STARTS[name] + moved for name, moved in some(0.01, seed=2).items()}


def quantum(name: str, form: str) -> Tensor:
    """The largest error of each number, apart from float32's own."""
    moved = (TRAINED[name] - STARTS[name]).abs()
    if form == "bfloat16":
        return moved * BFLOAT16_STEP
    if not moved.dim():
        return moved / LARGEST[form]
    tall = moved.numel() // max(moved.shape[-1], 1) > moved.shape[-1]
    largest = moved.flatten(0, -2).amax(0) if tall else moved.amax(-1, keepdim=True)
    return largest.expand(moved.shape) / LARGEST[form]


@pytest.mark.parametrize("form", FORMS)
def test_every_number_arrives_within_a_quantum(form):
    again = unpacked(packed(TRAINED, STARTS, form, drawn()), STARTS, form)
    assert again.keys() == TRAINED.keys()
    for name, array in TRAINED.items():
        assert (again[name].shape, again[name].dtype) == (array.shape, torch.float32)
        if array.numel():
            rounding = 1e-6 * (1 + STARTS[name].abs())
            assert (again[name] - array).abs().le(quantum(name, form) + rounding).all(), name
    assert not torch.equal(again["A"], TRAINED["A"])


@pytest.mark.parametrize("form", FORMS)
def test_the_mean_of_many_roundings_is_the_number(form):
    times = 600  # to the nearest would be wrong by half a step, and this sees a tenth of one
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    trained = some(seed=3)
    total = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for number in range(times):
        for name, array in unpacked(packed(trained, zeros, form, drawn(number)), zeros, form).items():
            total[name] += array
    for name in ("A", "B", "bias", "deep"):
        step = 2.0**-7 if form == "bfloat16" else 1 / LARGEST[form]
        error = (total[name] / times - trained[name]).abs().max() / trained[name].abs().max()
        assert error < 5 * step / 2 / times**0.5, name  # 5 standard errors, each half a quantum at most


@pytest.mark.parametrize("form", FORMS)
def test_a_difference_is_never_further_than_it_was(form):
    """Admission bounds how far training reaches, and must refuse no honest client."""
    again = unpacked(packed(TRAINED, STARTS, form, drawn()), STARTS, form)
    for name, array in TRAINED.items():
        if array.numel():
            reached, moved = ((each - STARTS[name]).abs().max() for each in (again[name], array))
            assert reached <= moved * (1 + overshoot(form)) + 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_what_did_not_move_arrives_as_it_was(form):
    trained = {**STARTS, "A": STARTS["A"].clone()}
    trained["A"][1] += 0.5
    again = unpacked(packed(trained, STARTS, form, drawn()), STARTS, form)
    for name in STARTS.keys() - {"A"}:
        assert torch.equal(again[name], STARTS[name])
    assert torch.equal(again["A"][0], STARTS["A"][0]) and not torch.equal(again["A"][1], STARTS["A"][1])


@pytest.mark.parametrize("form", FORMS)
def test_numbers_too_small_for_a_scale_are_zero_or_themselves(form):
    start = {"A": torch.zeros(1, 3)}
    trained = {"A": torch.tensor([[1e-44, -1e-42, 0.0]])}
    again = unpacked(packed(trained, start, form, drawn()), start, form)
    assert again["A"].abs().max() < 1e-38


@pytest.mark.parametrize("form", FORMS)
def test_the_same_generator_gives_the_same_bytes_and_another_gives_others(form):
    one, same, other = (packed(TRAINED, STARTS, form, drawn(each)) for each in ("a", "a", "b"))
    assert one.keys() == same.keys() and all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one[CODES], other[CODES])


def test_the_order_of_arrays_does_not_matter():
    turned = dict(reversed(STARTS.items()))
    one, other = packed(TRAINED, STARTS, "int8", drawn()), packed(TRAINED, turned, "int8", drawn())
    assert torch.equal(one[CODES], other[CODES])
    back = unpacked(one, turned, "int8")
    assert all(torch.equal(back[name], array) for name, array in unpacked(one, STARTS, "int8").items())


@pytest.mark.parametrize(("form", "fewer"), [("bfloat16", 2.0), ("int8", 3.85), ("int4", 7.4)])
def test_a_lora_pair_takes_as_many_times_fewer_bytes(form, fewer):
    pair = {"A": torch.randn(8, 384), "B": torch.randn(384, 8)}
    sent = packed(pair, {name: torch.zeros_like(array) for name, array in pair.items()}, form, drawn())
    assert sum(array.nbytes for array in pair.values()) >= fewer * sum(
        array.nbytes for array in sent.values()
    )


@pytest.mark.parametrize("length", [1, 2, 3, 10, 11])
def test_int4_holds_any_number_of_codes(length):
    """Each code from -7 to 7 comes back, also the last of an odd number."""
    start = {"bias": torch.zeros(length)}
    trained = {"bias": torch.arange(length).remainder(15).float() - 7}
    trained["bias"][0] = -7  # so that the scale is 1 and nothing is rounded
    sent = packed(trained, start, "int4", drawn())
    assert sent[CODES].numel() == -(-length // 2) and sent[CODES].dtype == torch.uint8
    assert torch.equal(unpacked(sent, start, "int4")["bias"], trained["bias"])


@pytest.mark.parametrize("form", ["float32", *FORMS])
def test_nothing_is_packed_to_nothing(form):
    assert packed({}, {}, form, drawn()) == {} == unpacked({}, {}, form)


def test_float32_travels_as_it_is():
    assert packed(TRAINED, STARTS, "float32", drawn()) == TRAINED == unpacked(TRAINED, STARTS, "float32")


def changed(name: str, at: int, value: float):
    def change(sent: dict[str, Tensor]) -> None:
        sent[name][at] = value

    return change


def replaced(name: str, change: Callable[[Tensor], Tensor]):
    return lambda sent: sent.update({name: change(sent[name])})


LIES = [
    ("int8", changed(SCALES, 0, float("nan")), "uplink.scales is not finite"),
    ("int8", changed(SCALES, 2, float("inf")), "uplink.scales is not finite"),
    ("int4", changed(SCALES, 2, -1.0), "uplink.scales are below zero"),
    ("int8", changed(CODES, 3, -128), "uplink.codes are below -127"),
    ("int4", changed(CODES, 3, 0x08), "uplink.codes are below -7"),
    ("int4", changed(CODES, 3, 0x80), "uplink.codes are below -7"),
    ("int4", changed(CODES, -1, 0x10), "uplink.codes go on after their end"),
    ("int8", lambda sent: sent.pop(SCALES), "uplink.scales is missing"),
    ("int8", replaced(SCALES, lambda scales: scales[1:]), "uplink.scales is of shape [14], not [15]"),
    ("int8", replaced(SCALES, Tensor.double), "uplink.scales is float64, not float32"),
    ("int8", replaced(CODES, lambda codes: codes[1:]), "uplink.codes is of shape [302], not [303]"),
    ("int8", replaced(CODES, Tensor.float), "uplink.codes is float32, not int8"),
    ("int4", replaced(CODES, lambda codes: codes.view(torch.int8)), "uplink.codes is int8, not uint8"),
    ("bfloat16", replaced(CODES, Tensor.float), "uplink.codes is float32, not bfloat16"),
    ("bfloat16", lambda sent: sent.update({"A": TRAINED["A"]}), "'A' was not asked for"),
]


@pytest.mark.parametrize(("form", "lie", "reason"), LIES, ids=[f"{form} {why}" for form, _, why in LIES])
def test_what_no_client_packs_is_refused(form, lie, reason):
    sent = packed(TRAINED, STARTS, form, drawn())
    lie(sent)
    with pytest.raises(RefusalError) as refused:
        unpacked(sent, STARTS, form)
    assert str(refused.value).startswith(reason)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_stays_so_or_is_refused(form, value):
    trained = {**TRAINED, "bias": torch.full((8,), value)}
    sent = packed(trained, STARTS, form, drawn())
    try:
        assert not unpacked(sent, STARTS, form)["bias"].isfinite().any()
    except RefusalError as refused:
        assert "is not finite" in str(refused)
