"""The same bits, wherever the operands lie in memory.

MKL picks the path through a matrix product by the alignment of its operands, and on some CPUs the last bits
follow. Its conditional numerical reproducibility turns that off. MKL reads the setting once, so it must stand
in the environment before torch is loaded. docs/performance.md says what it costs.
"""

from __future__ import annotations

import os
import sys

SETTING = "MKL_CBWR"
REPRODUCIBLE = "AUTO"
"""The fastest path of this CPU that does not depend on alignment."""

_torch_came_first = False


def request_same_bits() -> None:
    """Set MKL's conditional numerical reproducibility, for this process and its child processes.

    A setting of the user's own stays.
    """
    global _torch_came_first
    _torch_came_first = SETTING not in os.environ and "torch" in sys.modules
    os.environ.setdefault(SETTING, REPRODUCIBLE)


def same_bits_warning() -> str | None:
    """One line if the last bits are not promised; None if they are."""
    if _torch_came_first:
        remedy = f"import fedms first, or set {SETTING}={REPRODUCIBLE} in the environment"
        return f"torch was loaded before fedms, so the last bits of results are not promised; {remedy}"
    if not os.environ.get(SETTING):
        return f"{SETTING} is empty in the environment, so the last bits of results are not promised"
    return None


def describe_reproducibility() -> dict[str, str | bool | None]:
    """For environment.json: MKL's setting, and whether it was set before torch was loaded."""
    return {"mkl_cbwr": os.environ.get(SETTING), "mkl_cbwr_before_torch": not _torch_came_first}
