"""Asking clients: the line of an exchange, which answers count, and who is asked again where they are not enough."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedms.core.errors import FedmsError
from fedms.core.formatting import plural
from fedms.engines.base import Engine
from fedms.experiments.observers import Observer
from fedms.federation.admission import Admission
from fedms.federation.messages import Failure, FailureKind, Task, TaskKind, Update
from fedms.federation.method import Stage
from fedms.federation.server import Server
from fedms.runs.folder import RunFolder

WORDS: dict[FailureKind, str] = {
    "error": "failed",
    "died": "died",
    "deadline": "was too late",
    "refused": "was refused",
}


@dataclass
class Round:
    """What one line of metrics.jsonl is made from."""

    stage: str
    number: int
    planned: int
    active_blocks: int
    cohort: list[str]
    """Who was asked."""
    surplus: list[str] = field(default_factory=list)
    """Those of them who answered, too, when there were enough."""
    failures: list[Failure] = field(default_factory=list)
    train_loss: float | None = None
    validation_score: float | None = None
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    evaluation_bytes: int = 0
    train_flops: int = 0
    evaluation_flops: int = 0
    evaluation_seconds: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def record(self) -> dict[str, Any]:
        values = {
            key: value for key, value in vars(self).items() if key not in ("number", "planned", "began")
        }
        values["failures"] = [dict(vars(failure)) for failure in self.failures]
        return {
            "stage": values.pop("stage"),
            "round": self.number,
            "rounds": self.planned,
            **values,
            "seconds": self.seconds,
        }

    @property
    def seconds(self) -> float:
        return round(time.perf_counter() - self.began, 4)

    @property
    def place(self) -> str:
        """`global round 3`; of what is no round, such as the exchange of statistics, the name alone."""
        return f"{self.stage} round {self.number}" if self.planned else self.stage


class Asking:
    """Has tasks done by clients, and books what that cost, until enough have answered."""

    def __init__(
        self, server: Server, admission: Admission, engine: Engine, folder: RunFolder, observer: Observer
    ) -> None:
        self.server = server
        self.admission = admission
        self.engine = engine
        self.folder = folder
        self.observer = observer
        self.attempts = server.config.federation.attempts

    def round(self, line: Round, stage: Stage) -> list[Update]:
        """Answers of a round of training: those of its cohort, or as many in their place; the quorum at least."""
        federation, server = self.server.config.federation, self.server
        cohort, others = server.cohort(stage, line.number), server.others(stage, line.number)
        return self.ask(
            line,
            "train",
            [*cohort, *others],
            stage,
            wanted=len(cohort),
            needed=federation.quorum,
            spare=federation.oversample,
            arrays=server.shared,
        )

    def ask(
        self,
        line: Round,
        kind: TaskKind,
        clients: Sequence[str],
        stage: Stage | None,
        wanted: int | None = None,
        needed: int = 1,
        spare: int = 0,
        evaluation: bool = False,
        **more: Any,
    ) -> list[Update]:
        """Answers to a task.

        Args:
            clients: who can be asked, in this order; those who failed come last.
            wanted: how many answers count: of more, the first in the order of asking, whoever was quicker. Default: all.
            needed: with fewer, further clients are asked for what is missing. What has come in stays.
            spare: how many more are asked each time than answers are missing.
            more: what the tasks hold.

        Raises:
            FedmsError: too few answers, however often clients were asked. The line is in metrics.jsonl then.
        """
        wanted = len(clients) if wanted is None else wanted
        waiting, answered = list(clients), list[Update]()
        for attempt in range(1, self.attempts + 1):
            missing = wanted - len(answered)
            asked, waiting = waiting[: missing + spare], waiting[missing + spare :]
            if kind == "train":
                line.cohort += [client for client in asked if client not in line.cohort]
            came = self._exchange(
                line, self.server.tasks(kind, asked, stage, line.number, **more), missing, evaluation
            )
            answered += came
            if len(answered) >= needed:
                return answered
            heard = {update.client for update in came}
            waiting += [client for client in asked if client not in heard]
            if attempt < self.attempts:
                self.observer.note(
                    f"{line.place}, {kind}: {len(answered)} of {plural(needed, 'answer')} needed; asking again"
                )
        self.folder.append_metrics(line.record())
        last = line.failures[-1]
        if kind == "test":
            raise FedmsError(
                f"{last.client} could not be tested, so there is no result: {last.reason}; go on with --resume"
            )
        raise FedmsError(
            f"{line.place}, {kind}: {len(answered)} of {plural(needed, 'answer')} needed, after {plural(self.attempts, 'attempt')}; "
            f"{last.client} {WORDS[last.kind]}: {last.reason}; go on with --resume"
        )

    def _exchange(self, line: Round, tasks: Sequence[Task], most: int, evaluation: bool) -> list[Update]:
        """Have tasks done and book what it cost; at most so many of the updates that are admitted."""
        sent, received = self.engine.sent, self.engine.received
        self.folder.asked(task.client for task in tasks)
        began = time.perf_counter()
        answers = self.engine.run(tasks)
        took = time.perf_counter() - began
        sent, received = self.engine.sent - sent, self.engine.received - received
        if evaluation:
            line.evaluation_bytes += sent + received
        else:
            line.downlink_bytes += sent
            line.uplink_bytes += received
        taken = self._taken(line, tasks, answers, most)
        costs = [(update.client, update.metrics) for update in taken]
        if evaluation:
            line.evaluation_flops += self.server.book(costs, evaluation=True)
        else:
            line.train_flops += self.server.book(costs)
            after = [(update.client, update.metrics.get("evaluation", {})) for update in taken]
            line.evaluation_flops += self.server.book(after, evaluation=True)
            took *= _share(taken)
        line.evaluation_seconds = round(line.evaluation_seconds + took, 4)
        self.server.record_delivery(tasks, taken)
        return taken

    def _taken(
        self, line: Round, tasks: Sequence[Task], answers: Sequence[Update | Failure], most: int
    ) -> list[Update]:
        """The answers that count. What is beyond them is not even looked at; of what is lost, a line each."""
        taken, lost = list[Update](), list[Failure]()
        for task, answer in zip(tasks, answers, strict=True):
            if isinstance(answer, Failure):
                lost.append(answer)
            elif len(taken) == most:
                line.surplus.append(task.client)
            elif reason := self.admission.refusal(task, answer):
                lost.append(Failure(task.client, "refused", reason))
            else:
                taken.append(answer)
        line.failures += lost
        for each in lost:
            self.observer.note(f"{each.client} {WORDS[each.kind]} in {line.place}: {each.reason}")
        return taken


def _share(updates: Sequence[Update]) -> float:
    """The part of their work that was evaluation, by operations: of validation after local training no client says how long it took."""
    judged = sum(int(update.metrics.get("evaluation", {}).get("flops", 0)) for update in updates)
    return (
        judged / (sum(int(update.metrics.get("flops", 0)) for update in updates) + judged) if judged else 0.0
    )
