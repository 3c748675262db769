"""Runs whose answers reach the server as secure sums: the same accuracy, whoever is lost on the way."""

import json
import stat

import pytest
import torch
from misbehaving import Rule

from fedms.core.errors import FedmsError

pytest.importorskip("cryptography")
pytestmark = pytest.mark.integration

SECURE = "privacy.secure_sum=true"
ALL = "federation.cohort=4"
SINGLE = ("test", "sum-introduce", "sum-share", "sum-reveal")
ACCURACIES = (
    "accuracy_local",
    "accuracy_global",
    "accuracy_base",
    "interpolation",
    "label_prior",
    "head_share",
)


@pytest.mark.parametrize("method", ["fedms", "fedavg", "ffa-lora", "statistics", "fedper"])
def test_a_run_comes_to_the_same_as_in_the_clear(finished, method):
    sent = "statistics.second_moment=true"  # as in secure sums
    plain, secure = (finished(f"method={method}", ALL, also) for also in (sent, SECURE))
    for key in ACCURACIES:
        assert secure.result[key] == pytest.approx(plain.result[key], abs=0.02), key
    for clear, summed in zip(plain.lines, secure.lines, strict=True):
        assert summed["train_loss"] == pytest.approx(clear["train_loss"], abs=1e-3)
        assert (summed["train_flops"], summed["failures"]) == (clear["train_flops"], [])


def test_the_same_config_gives_the_same_bits_whatever_the_masks(perform):
    first, second = (perform(ALL, SECURE) for _ in range(2))
    keys = [key for key in first.result if "bytes" not in key and "seconds" not in key]
    assert [first.result[key] for key in keys] == [second.result[key] for key in keys]


def test_no_answer_but_the_test_reaches_the_server_unmasked(perform, traffic):
    perform(ALL, SECURE)
    summed = [(task, update) for task, update in traffic.exchanges if task.kind not in SINGLE]
    kinds = {task.kind for task, _ in summed}
    assert {"train", "evaluate", "statistics", "calibrate", "head", "interpolate", "weigh"} <= kinds
    for _, update in summed:
        assert update.weight == 0 and update.metrics.keys() <= {"flops", "once", "evaluation"}
        assert update.arrays and all(array.dtype == torch.int32 for array in update.arrays.values())
    sums = torch.cat([array.flatten() for _, update in summed for array in update.arrays.values()]).double()
    assert abs(float(sums.mean())) < 2**31 / 20
    assert float(sums.std()) == pytest.approx(2**32 / 12**0.5, rel=0.05)


def test_secrets_are_the_owner_s_alone_and_gone_after_the_sum(finished):
    for path in finished("method=fedms", ALL, SECURE).folder.glob("clients/*/secrets.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert json.loads(path.read_text())["sum"] == {}


@pytest.mark.parametrize("kind", ["sum-introduce", "sum-share", "train", "sum-reveal"])
def test_a_client_that_is_lost_at_any_step_is_recovered(perform, misbehave, finished, kind):
    misbehave(Rule("raise", client="client-2", kind=kind, stage="global", round=1))
    run = perform("method=fedavg", ALL, SECURE)
    assert {each["client"] for each in run.rounds("global")[0]["failures"]} == {"client-2"}
    if kind == "sum-reveal":  # its answer was in the sum already
        whole = finished("method=fedavg", ALL, SECURE)
        assert run.result["accuracy_local"] == whole.result["accuracy_local"]


def test_a_client_killed_after_masking_is_recovered_from_workers(perform, misbehave):
    misbehave(Rule("die", client="client-2", kind="sum-reveal", stage="global", round=1))
    run = perform("method=fedavg", ALL, SECURE, "engine.workers=2")
    failures = run.rounds("global")[0]["failures"]
    assert {(each["client"], each["kind"]) for each in failures} == {("client-2", "died")}
    assert run.result["accuracy_global"] > 0


def test_a_sum_of_fewer_than_the_least_is_not_made(perform, misbehave):
    misbehave(*(Rule("raise", client=f"client-{n}", kind="train", stage="global") for n in (1, 2)))
    with pytest.raises(FedmsError, match="2 of 3 answers needed"):
        perform("method=fedavg", ALL, SECURE)
