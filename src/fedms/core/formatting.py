"""Numbers and names as people read them: units, plurals, one line of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

MISSING = "–"
"""Shown in place of a value that is not there."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST_EXCERPT = 80
"""Upper bound on the characters of a key or value in a message."""


def percent(value: float | None, digits: int = 1) -> str:
    """0.8123 is `81.2 %`."""
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


def points(share: float | None) -> str:
    """-0.0123 is `−1.2`: a difference in hundredths, with its sign."""
    return MISSING if share is None else f"{round(100 * share, 1) or 0.0:+.1f}".replace("-", "−")


def decimal(value: float | None, digits: int = 3) -> str:
    """0.81234 is `0.812`."""
    return MISSING if value is None else f"{value:.{digits}f}"


def whole(value: float | None) -> str:
    """12345.0 is `12,345`."""
    return MISSING if value is None else f"{value:,.0f}"


def scaled(value: float | None, unit: str) -> str:
    """1234567, "B" is `1.23 MB`: three figures and a decimal prefix."""
    if value is None:
        return MISSING
    power, prefix = scale(value)
    return f"{three_figures(value / 10**power)} {prefix}{unit}" if power else f"{value:.0f} {unit}"


def scale(value: float) -> tuple[int, str]:
    """The power of ten and the decimal prefix that suit a value: 1234567 is 6, `M`."""
    prefixes = ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k"))
    return next(((power, prefix) for power, prefix in prefixes if abs(value) >= 0.9995 * 10**power), (0, ""))


def three_figures(value: float) -> str:
    """1.2345 is `1.23`, 12.345 is `12.3`, 1234.5 is `1,234`."""
    size = abs(value)
    return f"{value:,.{0 if size >= 99.95 or size == 0 else 1 if size >= 9.995 else 2}f}"


def duration(seconds: float | None) -> str:
    """3.14 is `3.1 s`, 75 is `1 min 15 s`, 4000 is `1 h 7 min`."""
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def plural(count: int, noun: str) -> str:
    """1, "class" is `1 class`; 2 is `2 classes`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"


def tally(failures: Iterable[Any]) -> str:
    """Number of failures of each kind: `1 died, 2 error`."""
    kinds = Counter(
        str(failure.get("kind", MISSING)) if isinstance(failure, dict) else MISSING for failure in failures
    )
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))


def printable(text: str) -> str:
    """The text without control characters. Names come from data, which may hold anything."""
    return "".join(character if character.isprintable() else REPLACEMENT for character in text)


def one_line(text: object) -> str:
    """A message on one line, without control characters and with single blanks."""
    return printable(" ".join(str(text).split()))


def clip(text: str, length: int = 28) -> str:
    """A name in a table or picture: printable, and at most `length` characters."""
    line = printable(text)
    return line if len(line) <= length else line[: length - 1] + "…"


def excerpt(text: str) -> str:
    """A key or value inside a message: printable, and at most LONGEST_EXCERPT characters."""
    line = text if text.isprintable() else repr(text)
    return line if len(line) <= LONGEST_EXCERPT else f"{line[:LONGEST_EXCERPT]}..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'fedavg'?` for `fedavgg`; empty where no known name is like it."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
