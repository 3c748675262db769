"""Tasks and updates survive the way as bytes; damaged bytes are one clear error."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from fedms.core.errors import FedmsError
from fedms.federation.messages import Failure, Task, Update, decode_answer, decode_task, decode_update, encode

ARRAYS = {
    "floats": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "view": torch.arange(12.0).reshape(3, 4).T,
    "empty": torch.empty(0, 5),
    "scalar": torch.tensor(2.5),
    "int64": torch.tensor([2**62 + 1, -1]),
    "float64": torch.tensor([1 / 3], dtype=torch.float64),
    "special": torch.tensor([float("nan"), float("inf"), -0.0]),
}
TASK = Task(
    "train",
    "client-é",
    "global",
    3,
    ARRAYS,
    {"active": [1, 2], "temperature": 0.1 + 0.2, "features": "global"},
)
UPDATE = Update("client-0", ARRAYS, 17, {"loss": 1 / 3, "kept": True, "nothing": None})


def same(message, again) -> bool:
    plain = [
        {key: value for key, value in vars(each).items() if key != "arrays"} for each in (message, again)
    ]
    return plain[0] == plain[1] and message.arrays.keys() == again.arrays.keys()


@pytest.mark.parametrize(
    ("message", "decode"), [(TASK, decode_task), (UPDATE, decode_update)], ids=["task", "update"]
)
def test_a_message_comes_back_as_it_was(message, decode):
    again = decode(encode(message))
    assert same(message, again)
    for name, array in ARRAYS.items():
        got = again.arrays[name]
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        assert got.numpy().tobytes() == array.contiguous().numpy().tobytes()


def test_a_message_is_what_safetensors_writes():
    """Byte for byte, since its length is what is booked."""
    contiguous = {name: array.contiguous() for name, array in ARRAYS.items()}
    other = {"half": torch.ones(3, dtype=torch.bfloat16), "flags": torch.tensor([True, False])}
    values = {key: value for key, value in vars(TASK).items() if key != "arrays"}
    assert encode(replace(TASK, arrays=ARRAYS | other)) == save(
        contiguous | other, metadata={"fedms": json.dumps(values)}
    )


def test_a_message_without_arrays_comes_back():
    failed = Failure("client-0", "error", "ValueError: broken")
    assert decode_answer(encode(failed)) == failed
    with pytest.raises(FedmsError, match="client-0 failed: ValueError: broken"):
        decode_update(encode(failed))


@pytest.mark.parametrize(
    "failure", [{"kind": "none", "reason": "a"}, {"kind": "error", "reason": 3}, {"kind": "error"}, "lost", 5]
)
def test_a_failure_of_another_form_is_refused(failure):
    data = save({}, metadata={"fedms": json.dumps({"client": "a", "failure": failure})})
    with pytest.raises(FedmsError, match="a message cannot be read"):
        decode_answer(data)


def test_the_same_message_is_the_same_bytes():
    assert encode(UPDATE) == encode(decode_update(encode(UPDATE)))


def test_an_array_that_trains_travels_as_its_value():
    leaf = torch.ones(2, requires_grad=True)
    assert not decode_update(encode(Update("a", {"leaf": leaf}))).arrays["leaf"].requires_grad


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, -1])
def test_cut_bytes_are_refused(keep):
    with pytest.raises(FedmsError, match="a message cannot be read"):
        decode_update(encode(UPDATE)[:keep])


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 64,
        save({"a": torch.ones(2)}),
        save({"a": torch.ones(2)}, metadata={"other": "{}"}),
        save({"a": torch.ones(2)}, metadata={"fedms": "{"}),
    ],
    ids=["noise", "no metadata", "another's metadata", "no JSON"],
)
def test_foreign_bytes_are_refused(data):
    with pytest.raises(FedmsError, match="a message cannot be read"):
        decode_update(data)


@pytest.mark.parametrize(
    ("data", "decode"),
    [
        (encode(UPDATE), decode_task),
        (encode(TASK), decode_update),
        (save({}, metadata={"fedms": '{"client": "a", "more": 1}'}), decode_update),
        (save({}, metadata={"fedms": "[]"}), decode_update),
        (save({}, metadata={"fedms": "{}"}), decode_update),
    ],
    ids=["update for task", "task for update", "unknown field", "no mapping", "no client"],
)
def test_a_message_of_another_shape_is_refused(data, decode):
    with pytest.raises(FedmsError, match="a message cannot be read"):
        decode(data)
