"""Progress in the terminal: one line per round, or a live bar.

Nothing here affects a result: an experiment calls an `Observer` and reads nothing from it.
"""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from fedms.core.formatting import MISSING, tally
from fedms.experiments.observers import Observer, Silent, Watcher


def observer(quiet: bool) -> Watcher:
    """The watcher for this output: none if quiet, a live bar on a terminal, else plain lines."""
    if quiet:
        return Silent()
    return Live() if sys.stdout.isatty() else PlainLines()


def default_observer() -> Observer:
    """The observer of a run in Python: a line for each round in a notebook, elsewhere none."""
    # a kernel has no terminal, and a live bar needs widgets that may not be installed
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return PlainLines() if hasattr(shell, "kernel") else Silent()


WORDS = {
    "statistics": "features",
    "calibrate": "calibration",
    "train": "training",
    "evaluate": "validation",
    "interpolate": "interpolation",
    "weigh": "weights",
    "head": "head",
    "label-prior": "label prior",
    "test": "test",
}
"""What clients compute for each kind of question, in a few words."""


class PlainLines(Silent):
    """One line per round, for files and pipes."""

    def __init__(self) -> None:
        self._remaining = Remaining([])
        self._of_text = False

    def begin(self, config: Any, facts: dict[str, Any]) -> None:
        """Print the headline."""
        self._remaining, self._of_text = Remaining(facts.get("plan") or []), of_text(config)
        self.note(headline(config, facts))

    def round_done(self, record: dict[str, Any]) -> None:
        """Print the round on one line."""
        self._remaining.round_done(record)
        self.note(round_line(record, self._remaining, self._of_text))

    def note(self, text: str) -> None:
        """Print the text on a line of its own, at once."""
        print(text, flush=True)


class Live(Silent):
    """A bar over all rounds: what is computed now, for which client, and the remaining time.

    Finished rounds and notes stay above it.
    """

    def __init__(self) -> None:
        # imported here, because workers and quiet runs do not need rich
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}", markup=False),
            expand=True,
        )
        self._remaining, self._of_text = Remaining([]), False
        self._task = self._progress.add_task("opening data and model", total=None, left=self._remaining)

    def begin(self, config: Any, facts: dict[str, Any]) -> None:
        """Start the bar over all planned rounds."""
        self.note(headline(config, facts))
        self._remaining, self._of_text = Remaining(facts.get("plan") or []), of_text(config)
        self._progress.update(
            self._task,
            total=self._remaining.total or None,
            completed=0,
            left=self._remaining,
            description="starting",
        )

    def round_done(self, record: dict[str, Any]) -> None:
        """Move the bar by one round, whose line stays above it."""
        self._remaining.round_done(record)
        self.note(round_line(record, self._remaining, self._of_text))
        self._progress.update(self._task, completed=self._remaining.done, description=_place(record))

    def progress(self, what: str, done: int, total: int) -> None:
        """Show what is computed now."""
        which = f"client {min(done + 1, total)} of {total}"
        self._progress.update(self._task, description=f"{WORDS.get(what, what)}: {which}")

    def note(self, text: str) -> None:
        """Print the text above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class Remaining:
    """Remaining time, from the times of the last rounds of each stage. Its text counts down.

    A stage that has not started is assumed to take as long per round as the last measured stage. Without any
        measurement the remaining time is unknown.
    """

    def __init__(
        self, plan: Sequence[Mapping[str, Any]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan = [(str(stage["stage"]), int(stage["rounds"])) for stage in plan]
        self._times: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=5))
        self._clock = clock
        self._last = clock()
        self._stage, self._round = "", 0
        self.total = sum(rounds for _, rounds in self._plan)

    def round_done(self, record: Mapping[str, Any]) -> None:
        """Take the time of a round into account."""
        now, stage = self._clock(), str(record.get("stage", ""))
        # statistics and the final test are not rounds of the plan
        if any(stage == planned for planned, _ in self._plan):
            self._stage, self._round = stage, int(_number(record, "round"))
            self._times[stage].append(_number(record, "seconds") or now - self._last)
        self._last = now

    @property
    def done(self) -> int:
        """Finished rounds, including those before a resumption."""
        before = 0
        for stage, rounds in self._plan:
            if stage == self._stage:
                return before + min(self._round, rounds)
            before += rounds
        return 0

    def seconds(self) -> float | None:
        """Remaining seconds, or None without a measurement."""
        left, behind = 0.0, self.done
        known = [stage for stage, rounds in self._plan if rounds and self._times[stage]]
        for stage, rounds in self._plan:
            open_rounds = max(0, rounds - behind)
            behind = max(0, behind - rounds)
            if not open_rounds:
                continue
            times = self._times[stage] or (self._times[known[-1]] if known else None)
            if not times:
                return None
            left += open_rounds * sum(times) / len(times)
        return max(0.0, left - (self._clock() - self._last)) if left else 0.0

    def __str__(self) -> str:
        left = self.seconds() if self.total else None
        if left is None:
            return MISSING
        minutes, seconds = divmod(math.ceil(left), 60)
        return (
            f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
        )


def of_text(config: Any) -> bool:
    """Whether a run of this config predicts next tokens, so that its score is minus a loss."""
    return getattr(config, "task", None) == "text"


def round_line(record: Mapping[str, Any], remaining: Remaining, losses: bool = False) -> str:
    """A finished round on one line; with `losses` the score is shown as a validation loss."""
    parts = [
        _place(record),
        *_numbers(record, losses),
        f"{_number(record, 'seconds'):.1f} s",
        f"left {remaining}",
    ]
    failures = record.get("failures") or []
    return "  ".join(parts) + (f"  failed: {tally(failures)}" if failures else "")


def headline(config: Any, facts: Mapping[str, Any]) -> str:
    """Method, seed, model and sizes of a run, on one line."""
    counts = [
        f"{facts[key]:,} {key}"
        for key in ("clients", "classes", "samples", "blocks", "workers")
        if isinstance(facts.get(key), int) and not (key == "classes" and of_text(config))
    ]
    what = f"{getattr(config, 'method', 'run')} (seed {getattr(config, 'seed', MISSING)})"
    return f"{what} on {facts.get('model', MISSING)}: " + ", ".join(counts)


def _place(record: Mapping[str, Any]) -> str:
    """`global 3/10`; only the name for a line that is not a round, such as the exchange of statistics."""
    stage = str(record.get("stage", ""))
    return f"{stage} {record.get('round', '?')}/{record['rounds']}" if record.get("rounds") else stage


def _numbers(record: Mapping[str, Any], losses: bool) -> list[str]:
    blocks = record.get("active_blocks", MISSING)
    score = f"validation loss {_score(record, -1)}" if losses else f"score {_score(record, 1)}"
    return [f"blocks {blocks}", score, f"loss {_loss(record)}"]


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _score(record: Mapping[str, Any], sign: int) -> str:
    score = record.get("validation_score")
    return MISSING if score is None else f"{sign * _number(record, 'validation_score'):.4f}"


def _loss(record: Mapping[str, Any]) -> str:
    return MISSING if record.get("train_loss") is None else f"{_number(record, 'train_loss'):.3f}"
