"""Clients that lie: what is not an honest answer is refused, and what may be one cannot move a robust average
far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedms.core.errors import FedmsError
from fedms.core.files import read_arrays
from fedms.engines import host as client_side
from fedms.experiments import ending
from fedms.federation.exchanges.uplink import CODES, SCALES
from fedms.federation.messages import Failure, Task, Update, decode_task, decode_update, encode
from fedms.federation.world import open_world

pytestmark = pytest.mark.integration

LIAR = "client-1"
SHORT = ("federation.cohort=4", "federation.rounds_global=1", "federation.rounds_local=1")
Lie = Callable[[Task, Update], Update | Failure]


@pytest.fixture
def in_flight(monkeypatch):
    """Have answers of this kind, in this stage, replaced on their way."""
    honest = client_side.handle

    def put(lie: Lie, kind: str, stage: str | None = None, clients: tuple[str, ...] = (LIAR,)) -> None:
        def handle(host, message: bytes) -> bytes:
            task, answer = decode_task(message), honest(host, message)
            meant = task.client in clients and task.kind == kind and stage in (None, task.stage)
            return encode(lie(task, decode_update(answer))) if meant else answer

        monkeypatch.setattr(client_side, "handle", handle)

    return put


# lies, and the words that name them


def array(name: str, change: Callable[[Tensor], Tensor]) -> Lie:
    return lambda task, update: replace(update, arrays=update.arrays | {name: change(update.arrays[name])})


def without(name: str) -> Lie:
    return lambda task, update: replace(
        update, arrays={each: array for each, array in update.arrays.items() if each != name}
    )


def more(name: str) -> Lie:
    return lambda task, update: replace(update, arrays=update.arrays | {name: torch.zeros(3)})


def metric(name: str, value: Any) -> Lie:
    return lambda task, update: replace(update, metrics=update.metrics | {name: value})


def weight(value: Any) -> Lie:
    return lambda task, update: replace(update, weight=value)


def first(value: float) -> Callable[[Tensor], Tensor]:
    """The array with another first number."""
    return lambda array: torch.cat([torch.tensor([value], dtype=array.dtype), array.flatten()[1:]]).reshape(
        array.shape
    )


def failed(task: Task, update: Update) -> Failure:
    return Failure(task.client, "error", "lost")


B, COUNTS = "block.2.query.lora_B", "statistics.counts"
LIES: list[tuple[str, str | None, Lie, str]] = [
    ("train", "global", array(B, first(float("nan"))), f"{B} is not finite"),
    ("train", "global", array("head.bias", first(float("-inf"))), "head.bias is not finite"),
    ("train", "global", array(B, lambda a: a[:-1]), f"{B} is of shape [31, 2], not [32, 2]"),
    ("train", "global", array(B, lambda a: a.T.contiguous()), f"{B} is of shape [2, 32]"),
    ("train", "global", array(B, lambda a: a.double()), f"{B} is float64, not float32"),
    ("train", "global", array(B, lambda a: a.long()), f"{B} is int64, not float32"),
    ("train", "global", without("head.weight"), "head.weight is missing"),
    ("train", "global", more("block.0.query.lora_A"), "'block.0.query.lora_A' was not asked for"),
    ("train", "global", array(B, lambda a: 100 * a), f"{B} is "),
    (
        "train",
        "global",
        array("head.weight", first(1e30)),
        "head.weight is 1e+30 away from its start, and training reaches ",
    ),
    ("train", "global", weight(10**6), "it speaks for 1000000 train samples, and declared "),
    (
        "train",
        "global",
        weight(float("nan")),
        "its number of train samples is not a whole number of at least 1",
    ),
    ("train", "global", weight(-3), "its number of train samples is not a whole number"),
    ("train", "global", weight("all"), "its number of train samples is not a number"),
    ("train", "global", metric("loss", float("inf")), "loss is not finite"),
    ("train", "global", metric("validated", 5), "it validates, and was not asked to"),
    ("train", "global", metric("flops", -1), "flops is not a whole number"),
    ("train", "global", metric("once", {"prefix": 3}), "once is not a table"),
    (
        "train",
        "global",
        lambda task, update: replace(update, client="client-0"),
        "it answers in another client's name",
    ),
    ("train", "local", array("gate.adapter.up", first(9.0)), "gate.adapter.up is 9 away from its start"),
    ("train", "local", metric("evaluation", {"flops": -1}), "flops is not a whole number"),
    ("train", "local", metric("evaluation", 5), "its costs are no table"),
    ("train", "local", metric("correct", 10**6), "correct is more than "),
    ("train", "local", metric("validated", 10**6), "it speaks for 1000000 validation samples, and declared "),
    ("statistics", None, array(COUNTS, first(0.5)), f"{COUNTS} are not "),
    ("statistics", None, array(COUNTS, lambda a: a - 1), f"{COUNTS} are not "),
    ("statistics", None, array("statistics.sums", first(1e6)), "statistics.sums are larger than "),
    ("statistics", None, array("statistics.second", first(1e9)), "the second moment is larger than "),
    ("statistics", None, array("statistics.second", first(float("nan"))), "statistics.second is not finite"),
    ("statistics", None, array("statistics.sums", lambda a: a[1:]), "statistics.sums is of shape "),
    (
        "calibrate",
        None,
        array("calibrate.log_likelihood", lambda a: a[1:]),
        "calibrate.log_likelihood is of shape [77], not [78]",
    ),
    (
        "calibrate",
        None,
        array("calibrate.log_likelihood", first(5.0)),
        "calibrate.log_likelihood is above zero",
    ),
    (
        "calibrate",
        None,
        array("calibrate.log_likelihood", first(-1e6)),
        "calibrate.log_likelihood is not in steps of 0.1 from 0 down to -4",
    ),
    ("head", "local", array("head.log_likelihood", lambda a: a[1:]), "head.log_likelihood is of shape [4], "),
    ("head", "local", array("head.log_likelihood", first(1.0)), "head.log_likelihood is above zero"),
    (
        "label-prior",
        "local",
        array("label_prior.log_likelihood", lambda a: a[1:]),
        "label_prior.log_likelihood is of shape [2], not [3]",
    ),
    (
        "label-prior",
        "local",
        array("label_prior.log_likelihood", first(1.0)),
        "label_prior.log_likelihood is above zero",
    ),
    (
        "interpolate",
        None,
        array("interpolate.log_likelihood", lambda a: a[1:]),
        "interpolate.log_likelihood is of shape [4], not [5]",
    ),
    (
        "interpolate",
        None,
        array("interpolate.log_likelihood", first(1.0)),
        "interpolate.log_likelihood is above zero",
    ),
    ("weigh", None, array("weigh.log_likelihood", first(float("nan"))), "weigh.log_likelihood is not finite"),
    ("weigh", None, weight(10**6), "it speaks for 1000000 validation samples, and declared "),
    ("weigh", None, array("weigh.log_likelihood", first(1.0)), "weigh.log_likelihood is above zero"),
    ("evaluate", None, metric("correct", 10**6), "correct is more than "),
    ("evaluate", None, metric("correct", -1), "correct is not a whole number"),
    ("evaluate", None, more("head.weight"), "'head.weight' was not asked for"),
]


SECOND = "statistics.second_moment=true"
"""So that there are lies about it."""


def kept(folder: Path) -> dict[str, Any]:
    """All arrays that server and clients keep, to the byte, and what else the server knows."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*.safetensors"):
        arrays, meta = read_arrays(path)
        found[str(path.relative_to(folder))] = (
            {name: (array.dtype, array.shape, array.numpy().tobytes()) for name, array in arrays.items()},
            {key: value for key, value in meta.items() if key not in ("lines", "declared")},
        )
    return found


@pytest.fixture(scope="module")
def without_the_liar() -> dict[tuple[str, str | None], dict[str, Any]]:
    """What runs come to in which its answer was lost: done once for each kind of answer."""
    return {}


@pytest.mark.parametrize(
    ("kind", "stage", "lie", "reason"), LIES, ids=[f"{kind}-{reason[:40]}" for kind, _, _, reason in LIES]
)
def test_a_lie_is_refused_and_named_and_leaves_no_trace(
    perform, in_flight, without_the_liar, kind, stage, lie, reason
):
    in_flight(lie, kind, stage)
    run = perform(*SHORT, SECOND)
    refused = [failure for line in run.lines for failure in line["failures"]]
    assert refused and all((each["client"], each["kind"]) == (LIAR, "refused") for each in refused)
    assert all(each["reason"].startswith(reason) and "\n" not in each["reason"] for each in refused)
    if (kind, stage) not in without_the_liar:
        in_flight(failed, kind, stage)
        without_the_liar[kind, stage] = kept(perform(*SHORT, SECOND).folder)
    assert kept(run.folder) == without_the_liar[kind, stage]


PACKED: list[tuple[str, Lie, str]] = [
    ("int8", array(SCALES, first(float("nan"))), f"{SCALES} is not finite"),
    ("int8", array(SCALES, first(-1.0)), f"{SCALES} are below zero"),
    ("int8", array(SCALES, first(1e30)), "block.2."),
    ("int8", array(CODES, first(-128)), f"{CODES} are below -127"),
    ("int4", array(CODES, first(0x88)), f"{CODES} are below -7"),
    ("int4", array(CODES, lambda codes: codes[1:]), f"{CODES} is of shape "),
    ("bfloat16", array(CODES, first(float("inf"))), "block.2."),
    ("bfloat16", array(CODES, lambda codes: codes.float()), f"{CODES} is float32, not bfloat16"),
]


@pytest.mark.parametrize(("form", "lie", "reason"), PACKED, ids=[f"{form} {why}" for form, _, why in PACKED])
def test_a_lie_in_what_is_packed_is_refused_as_any_other(perform, in_flight, form, lie, reason):
    in_flight(lie, "train", "global")
    run = perform(*SHORT, "method=fedavg-sal", f"federation.uplink={form}")
    [refused] = [failure for line in run.lines for failure in line["failures"]]
    assert (refused["client"], refused["kind"]) == (LIAR, "refused")
    assert refused["reason"].startswith(reason) and "\n" not in refused["reason"]


TESTED = [
    (metric("test_own", 1.5), "test_own is not between 0 and 1"),
    (metric("test_everyone", float("nan")), "test_everyone is not between 0 and 1"),
    (metric("test_own_frontier", [0.5]), "test_own_frontier is not 11 accuracies"),
    (metric("samples", 10**6), "it speaks for 1000000 train samples"),
    (metric("base_correct", 10**6), "base_correct is more than "),
    (metric("network_kept", "yes"), "network_kept is not true or false"),
]


@pytest.mark.parametrize(("lie", "reason"), TESTED, ids=[reason for _, reason in TESTED])
def test_a_lie_in_the_test_leaves_no_result(perform, in_flight, lie, reason):
    in_flight(lie, "test")
    with pytest.raises(FedmsError, match=f"^{LIAR} could not be tested, so there is no result: {reason}"):
        perform(*SHORT)


def test_a_round_of_lies_ends_the_run_in_one_line(perform, in_flight):
    in_flight(array(B, first(float("nan"))), "train", None, tuple(f"client-{number}" for number in range(4)))
    with pytest.raises(FedmsError) as caught:
        perform(*SHORT)
    assert str(caught.value) == (
        "global round 1, train: 0 of 1 answer needed, after 3 attempts; "
        f"client-3 was refused: {B} is not finite; go on with --resume"
    )


def test_what_clients_declared_outlives_the_server(perform, tiny, monkeypatch):
    world = open_world(tiny(*SHORT))
    monkeypatch.setattr(ending, "prune", lambda folder: 0)
    newest = max((perform(*SHORT).folder / "server").glob("state-*"), key=lambda path: path.stat().st_mtime)
    _, meta = read_arrays(newest)
    assert meta["declared"] == {
        client: {split: len(world.samples(client, split).labels) for split in ("train", "validation")}
        for client in world.clients
    }
