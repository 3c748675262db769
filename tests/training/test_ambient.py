"""A torch state of our own, whatever state the caller is in, and the caller's state afterwards."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import pytest
import torch

from default_dtype import default_dtype
from fedms.training.ambient import own_torch_state

AMBIENT: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "nothing": contextlib.nullcontext,
    "float64": lambda: default_dtype(torch.float64),
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "device": lambda: torch.device("meta"),
}


def state() -> tuple[object, ...]:
    """All that a caller can have set."""
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_device(),
    )


OURS = (torch.float32, True, False, False, torch.device("cpu"))


@pytest.mark.parametrize("ambient", AMBIENT)
def test_inside_the_state_is_ours_and_afterwards_the_callers(ambient):
    with AMBIENT[ambient]():
        before = state()
        assert (before == OURS) == (ambient == "nothing")
        with own_torch_state():
            assert state() == OURS
            with own_torch_state():
                assert state() == OURS
            assert state() == OURS
            leaf = torch.ones(3, 3).requires_grad_(True)
            (leaf @ leaf).sum().backward()
            assert leaf.grad is not None and leaf.grad.dtype == torch.float32
        assert state() == before
        with pytest.raises(KeyError), own_torch_state():
            raise KeyError
        assert state() == before


def test_a_function_can_run_in_it_each_time_it_is_called():
    inside = own_torch_state()(state)
    for _ in range(2):
        with default_dtype(torch.float64), torch.no_grad():
            assert inside() == OURS
            assert torch.get_default_dtype() == torch.float64


def test_threads_that_overlap_all_have_our_state_and_the_last_restores_the_callers():
    first, second = threading.Event(), threading.Event()
    found = []

    def long() -> None:
        with own_torch_state():
            first.set()
            second.wait(60)
            found.append(state())

    def short() -> None:
        first.wait(60)
        with own_torch_state():
            found.append(state())
        second.set()

    with default_dtype(torch.float64):
        threads = [threading.Thread(target=each) for each in (long, short)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [OURS, OURS]
        assert torch.get_default_dtype() == torch.float64
