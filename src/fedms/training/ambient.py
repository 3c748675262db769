"""The torch state that fedms computes in, whatever state the caller has set.

A caller may have another default dtype or device, gradients off, inference mode on, or autocast around a
call. Each of them changes what torch computes. `own_torch_state` sets torch's own defaults, and restores the
caller's state afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

AUTOCAST_DEVICES = ("cpu", "cuda")
"""Types of device that fedms computes on."""


@contextmanager
def own_torch_state() -> Iterator[None]:
    """torch's own defaults: float32, the CPU, gradients on, no inference mode, no autocast."""
    with ExitStack() as state:
        state.enter_context(_default_dtype.float32())
        state.enter_context(torch.inference_mode(False))
        state.enter_context(torch.enable_grad())
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                state.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            state.enter_context(torch.device("cpu"))
        yield


class _DefaultDtype:
    """torch's default dtype. Threads share it: the first user saves it, and the last user restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = torch.float32

    @contextmanager
    def float32(self) -> Iterator[None]:
        with self._lock:
            if self._users == 0:
                self._before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    torch.set_default_dtype(self._before)


_default_dtype = _DefaultDtype()
