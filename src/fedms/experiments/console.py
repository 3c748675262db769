"""What a run tells its watcher while it goes on, and three watchers: silent, a line a round, a live bar.

Nothing here is needed to compute anything: an experiment calls an `Observer` and never looks back.
"""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from fedms.core.formatting import tally
from fedms.experiments.observers import Silent, Watcher

MISSING = "–"


def observer(quiet: bool) -> Watcher:
    """The watcher that fits: silent if asked, live on a terminal, plain lines elsewhere."""
    if quiet:
        return Silent()
    return Live() if sys.stdout.isatty() else PlainLines()


class PlainLines(Silent):
    """One line a round, for files and pipes."""

    def __init__(self) -> None:
        self._remaining = Remaining([])

    def begin(self, config: Any, facts: dict[str, Any]) -> None:
        """What runs, on one line."""
        self._remaining = Remaining(facts.get("plan") or [])
        self.note(headline(config, facts))

    def round_done(self, record: dict[str, Any]) -> None:
        """The round on one line."""
        self._remaining.round_done(record)
        parts = [_place(record)]
        parts += [
            f"blocks {record.get('active_blocks', MISSING)}",
            f"score {_score(record)}",
            f"loss {_loss(record)}",
        ]
        parts += [f"{_number(record, 'seconds'):.1f} s", f"left {self._remaining}"]
        failures = record.get("failures") or []
        self.note("  ".join(parts) + (f"  failed: {tally(failures)}" if failures else ""))

    def note(self, text: str) -> None:
        """The text on a line of its own, at once."""
        print(text, flush=True)


class Live(Silent):
    """A bar over all rounds with stage, blocks, score, loss and the time left; notes go above it."""

    def __init__(self) -> None:
        # rich is imported here so that workers and the silent never pay for it
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}", markup=False),
            expand=True,
        )
        self._remaining = Remaining([])
        self._task = self._progress.add_task("preparing", total=None, numbers="", left=self._remaining)

    def begin(self, config: Any, facts: dict[str, Any]) -> None:
        """Start the bar over all the rounds planned."""
        self.note(headline(config, facts))
        self._remaining = Remaining(facts.get("plan") or [])
        self._progress.update(
            self._task,
            total=self._remaining.total or None,
            completed=0,
            left=self._remaining,
            description="starting",
        )

    def round_done(self, record: dict[str, Any]) -> None:
        """Move the bar by a round."""
        self._remaining.round_done(record)
        self._progress.update(
            self._task,
            completed=self._remaining.done,
            description=_place(record),
            numbers=f"blocks {record.get('active_blocks', MISSING)}  score {_score(record)}  loss {_loss(record)}",
        )

    def note(self, text: str) -> None:
        """The text above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class Remaining:
    """The time left, from the measured times of the last rounds of each stage. As text, it counts down by itself.

    A stage that has not begun is taken to cost what the last measured one costs; with none measured, the time left is not known.
    """

    def __init__(self, plan: list[Mapping[str, Any]], clock: Callable[[], float] = time.monotonic) -> None:
        self._plan = [(str(stage["stage"]), int(stage["rounds"])) for stage in plan]
        self._times: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=5))
        self._clock = clock
        self._last = clock()
        self._stage, self._round = "", 0
        self.total = sum(rounds for _, rounds in self._plan)

    def round_done(self, record: Mapping[str, Any]) -> None:
        """Learn from a round."""
        now, stage = self._clock(), str(record.get("stage", ""))
        if any(
            stage == planned for planned, _ in self._plan
        ):  # statistics and the final test are not rounds of the plan
            self._stage, self._round = stage, int(_number(record, "round"))
            self._times[stage].append(_number(record, "seconds") or now - self._last)
        self._last = now

    @property
    def done(self) -> int:
        """Rounds behind us, those before a resumption too."""
        before = 0
        for stage, rounds in self._plan:
            if stage == self._stage:
                return before + min(self._round, rounds)
            before += rounds
        return 0

    def seconds(self) -> float | None:
        """Seconds left, or None where nothing comparable has been measured."""
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


def headline(config: Any, facts: Mapping[str, Any]) -> str:
    """What runs, on one line."""
    counts = [
        f"{facts[key]:,} {key}"
        for key in ("clients", "classes", "samples", "blocks", "workers")
        if isinstance(facts.get(key), int)
    ]
    what = f"{getattr(config, 'method', 'run')} (seed {getattr(config, 'seed', MISSING)})"
    return f"{what} on {facts.get('model', MISSING)}: " + ", ".join(counts)


def _place(record: Mapping[str, Any]) -> str:
    """`global 3/10`; of what is no round, such as the exchange of statistics, the name alone."""
    stage = str(record.get("stage", ""))
    return f"{stage} {record.get('round', '?')}/{record['rounds']}" if record.get("rounds") else stage


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _score(record: Mapping[str, Any]) -> str:
    return MISSING if record.get("validation_score") is None else f"{_number(record, 'validation_score'):.4f}"


def _loss(record: Mapping[str, Any]) -> str:
    return MISSING if record.get("train_loss") is None else f"{_number(record, 'train_loss'):.3f}"
