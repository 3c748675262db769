"""A hostile name, full of the signs that HTML, TeX and the console read, and a comparison's rows with it."""

from __future__ import annotations

HOSTILE = "<b>x</b> $\\frac$ [red]&\"'"
ROWS = ("fedms", HOSTILE, "local", "prior 0.9")
"""What a comparison compares."""
