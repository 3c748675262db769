"""A whole run comes to the same, whatever torch state its caller is in."""

from __future__ import annotations

import contextlib

import pytest
import torch

from default_dtype import default_dtype
from fedms.core.files import read_arrays
from fedms.experiments.experiment import run

TIMES = ("seconds", "evaluation_seconds", "peak_memory_bytes")


@pytest.fixture(scope="module")
def outcome(settings, tmp_path_factory):
    """The result of a run in some state, and all arrays that are left."""

    def make(ambient: contextlib.AbstractContextManager[object]):
        folder = tmp_path_factory.mktemp("runs") / "run"
        with ambient:
            result = run(settings("engine.workers=1", "federation.rounds_global=1"), folder)
        arrays: dict[tuple[str, str], tuple[torch.dtype, bytes]] = {}
        for path in sorted(folder.rglob("*.safetensors")):
            held = read_arrays(path)[0]
            arrays |= {
                (str(path.relative_to(folder)), name): (array.dtype, array.numpy().tobytes())
                for name, array in held.items()
            }
        return {key: value for key, value in result.items() if key not in TIMES}, arrays

    return make


@pytest.fixture(scope="module")
def wanted(outcome):
    return outcome(contextlib.nullcontext())


@pytest.mark.parametrize(
    "ambient",
    [
        default_dtype(torch.float64),
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["float64", "no grad", "inference", "autocast"],
)
def test_a_run_does_not_depend_on_its_callers_torch_state(outcome, wanted, ambient):
    found = outcome(ambient)
    assert len(found[1]) > 20
    assert found == wanted
