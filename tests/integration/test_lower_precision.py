"""Whole runs in bfloat16: the same bits each time, nearly the accuracy of float32, and clients that predict
as they were tested.
"""

import pytest

from fedms.runs import predict
from fedms.runs.folder import RunFolder

pytestmark = pytest.mark.integration

HALF = "precision=bfloat16"


def test_a_run_in_bfloat16_gives_the_same_bits_in_any_number_of_workers_and_nearly_the_accuracies_of_float32(
    finished, perform
):
    half, exact = finished(HALF), finished()
    assert perform(HALF, "engine.workers=2").outcome == half.outcome
    assert half.outcome != exact.outcome
    for metric in ("accuracy_local", "accuracy_global"):
        assert half.result[metric] == pytest.approx(exact.result[metric], abs=0.1)
    for metric in ("train_flops", "downlink_bytes"):
        assert half.result[metric] == exact.result[metric]


def test_a_client_of_it_predicts_in_bfloat16(finished):
    run = finished(HALF)
    assert RunFolder(run.folder).config().precision == "bfloat16"
    client = predict.load(run.folder, run.result["per_client"][0]["name"])
    (found,) = client.predict(["dim the lamp please"])
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert "bfloat16" in str(client.backbone.dtype)
