"""A torch state of our own: the caller's defaults must neither change a result nor break it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

CPU = torch.device("cpu")
AUTOCAST_DEVICES = ("cpu", "cuda")

_lock = threading.Lock()
_entered = 0
"""How many blocks run now, in all threads."""
_callers_dtype = torch.float32
"""The default dtype to restore when the last block ends. Unlike the other states, all threads share it."""


@contextlib.contextmanager
def own_torch_state() -> Iterator[None]:
    """Run a block, or a decorated function, in the state that fedms needs, whatever state the caller is in.

    Inside, the default dtype is float32 and the default device the CPU, gradients are on, inference mode and
    autocast are off. The caller's state is restored at the end. Blocks may be nested, and may run in several
    threads at the same time.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_default_dtype())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device() != CPU:  # the context slows every call of torch
            stack.enter_context(CPU)
        yield


@contextlib.contextmanager
def _default_dtype() -> Iterator[None]:
    global _entered, _callers_dtype
    with _lock:
        if not _entered:
            _callers_dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _entered += 1
    try:
        yield
    finally:
        with _lock:
            _entered -= 1
            if not _entered:
                torch.set_default_dtype(_callers_dtype)
