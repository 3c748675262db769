"""The same operands give the same bits at every place in memory, or a warning says otherwise."""

import json
import os
import subprocess
import sys

import torch
from torch.nn import functional as F

import fedms
from fedms.config import load_config
from fedms.runs.environment import describe_environment

SHAPES = [(32, 384, 384), (3, 32, 4), (7, 37, 50), (64, 4, 32), (32, 32, 32), (77, 96, 128), (9, 32, 3)]
PLACES = range(16)
"""Offsets in numbers of four bytes, so that each alignment within a cache line comes up."""


def placed(values: torch.Tensor, place: int) -> torch.Tensor:
    """The same values at this offset from a cache line."""
    room = torch.empty(values.numel() + 32)
    start = (place - room.data_ptr() // 4) % 16
    return room[start : start + values.numel()].view(values.shape).copy_(values)


def test_a_product_has_the_same_bits_wherever_its_operands_lie(generator):
    for rows, inner, columns in SHAPES:
        x, weight = (
            torch.randn(rows, inner, generator=generator),
            torch.randn(columns, inner, generator=generator),
        )
        wanted = F.linear(x, weight)
        for place in PLACES:
            for other in (0, 1, 5):
                assert torch.equal(F.linear(placed(x, place), placed(weight, other)), wanted), (
                    rows,
                    inner,
                    columns,
                    place,
                )


def python(code: str, **environment: str) -> str:
    """The output of a fresh process."""
    clean = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"} | environment
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True, timeout=60
    )
    return done.stdout


TELL = (
    "import json; from fedms.core.reproducibility import *; "
    "print(json.dumps([describe_reproducibility(), same_bits_warning()]))"
)


def test_it_is_set_before_torch_is_loaded():
    said, warning = json.loads(python(f"import fedms; {TELL}"))
    assert said == {"mkl_cbwr": "AUTO", "mkl_cbwr_before_torch": True} and warning is None


def test_a_setting_of_the_users_stands():
    said, warning = json.loads(python(f"import torch, fedms; {TELL}", MKL_CBWR="AVX2"))
    assert said == {"mkl_cbwr": "AVX2", "mkl_cbwr_before_torch": True} and warning is None


def test_where_torch_came_first_one_line_says_what_is_not_promised():
    said, warning = json.loads(python(f"import torch, fedms; {TELL}"))
    assert said == {"mkl_cbwr": "AUTO", "mkl_cbwr_before_torch": False}
    assert "import fedms first" in warning and "\n" not in warning


def test_who_turns_it_off_hears_what_is_not_promised():
    said, warning = json.loads(python(f"import fedms; {TELL}", MKL_CBWR=""))
    assert said["mkl_cbwr"] == "" and "not promised" in warning


def test_the_environment_says_it():
    assert describe_environment(load_config({}), 1)["mkl_cbwr"] == os.environ["MKL_CBWR"]
    assert fedms.__all__
