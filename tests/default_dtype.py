"""A caller of fedms who works in another default dtype."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The default dtype of torch for a while; what runs inside must leave it alone."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype, "it is the caller's"
    finally:
        torch.set_default_dtype(before)
