"""Ask clients, count the answers that are admitted, and ask again while there are too few.

Every exchange becomes one line of metrics.jsonl.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedms.core.errors import FedmsError
from fedms.core.formatting import plural
from fedms.engines.base import Engine
from fedms.experiments.observers import Observer
from fedms.federation.admission import Admission
from fedms.federation.exchanges import EVALUATION, FINAL_TEST, TRAINING
from fedms.federation.exchanges.base import Asked, Cost, Exchange
from fedms.federation.exchanges.checks import RefusalError
from fedms.federation.exchanges.local_training import TrainingAsked
from fedms.federation.messages import Failure, FailureKind, Task, Update
from fedms.federation.method import Stage
from fedms.federation.server import Server
from fedms.model.arrays import Arrays
from fedms.runs.folder import RunFolder

WORDS_OF_FAILURE: dict[FailureKind, str] = {
    "error": "failed",
    "died": "died",
    "deadline": "was too late",
    "refused": "was refused",
    "lost": "has lost its files",
}


@dataclass
class Line:
    """One line of metrics.jsonl."""

    stage: str
    number: int
    planned: int
    active_blocks: int
    cohort: list[str]
    """The clients that were asked."""
    surplus: list[str] = field(default_factory=list)
    """Clients of the cohort whose answers came on top of the wanted number."""
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
        """`global round 3`; for an exchange outside the rounds its name alone."""
        return f"{self.stage} round {self.number}" if self.planned else self.stage


class Arrivals:
    """Counts the answers to some tasks as they come in, and tells the observer."""

    def __init__(self, observer: Observer, tasks: Sequence[Task]) -> None:
        self._observer = observer
        self._what = tasks[0].kind if tasks else ""
        self._total = len(tasks)
        self._numbers = itertools.count(1)  # whose `next` is one step for all threads
        observer.progress(self._what, 0, self._total)

    def __call__(self, answer: Update | Failure) -> None:
        self._observer.progress(self._what, next(self._numbers), self._total)


@dataclass(frozen=True)
class Question:
    """What clients are asked, and how it is booked."""

    line: Line
    exchange: Exchange[Any, Any, Any]
    stage: Stage | None
    evaluation: bool
    arrays: Arrays | None
    asked: Asked | None


class Rounds:
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

    def train(self, line: Line, stage: Stage, validates: bool = False) -> list[Update]:
        """Answers of a round of training: a cohort's number of them, the quorum at least.

        Args:
            validates: whether the clients also validate what the round begins with.
        """
        federation, sampling = self.server.config.federation, self.server.sampling
        cohort, others = sampling.cohort(stage, line.number), sampling.others(stage, line.number)
        return self.ask(
            line,
            TRAINING,
            [*cohort, *others],
            stage,
            wanted=len(cohort),
            needed=federation.quorum,
            spare=federation.oversample,
            arrays=self.server.shared,
            asked=TrainingAsked(validates),
        )

    def validate(self, line: Line, stage: Stage) -> float | None:
        """The score of what is shared now."""
        validators, arrays = self.server.sampling.validators, self.server.shared
        answers = self.ask(line, EVALUATION, validators, stage, evaluation=True, arrays=arrays)
        return EVALUATION.result(answers, self.server.recipe)

    def can_validate_later(self, stage: Stage, number: int) -> bool:
        """Whether this round's validation can travel with the next round's training: nothing depends on its
        score, and both ask all clients.
        """
        sampling = self.server.sampling
        everyone = sampling.validators == sampling.clients == sampling.cohort(stage, number + 1)
        return everyone and self.server.needs_no_score(stage, number)

    def ask(
        self,
        line: Line,
        exchange: Exchange[Any, Any, Any],
        clients: Sequence[str],
        stage: Stage | None,
        wanted: int | None = None,
        needed: int = 1,
        spare: int = 0,
        evaluation: bool = False,
        arrays: Arrays | None = None,
        asked: Asked | None = None,
    ) -> list[Update]:
        """Admitted answers to a question.

        Args:
            clients: the clients that can be asked, in this order. Those that failed come last.
            wanted: how many answers count. Of more, the first in the order of asking count, not the quickest.
                Default: all.
            needed: with fewer answers, further clients are asked for the missing ones. Answers so far stay.
            spare: how many more clients are asked each time than answers are missing.
            evaluation: whether this is booked as evaluation, not as training.
            arrays: what every task holds.
            asked: what the exchange asks beside the situation.

        Raises:
            FedmsError: too few answers after all attempts. The line is in metrics.jsonl then.
        """
        question = Question(line, exchange, stage, evaluation, arrays, asked)
        return self._enough(question, clients, len(clients) if wanted is None else wanted, needed, spare)

    def _enough(
        self, question: Question, clients: Sequence[str], wanted: int, needed: int, spare: int
    ) -> list[Update]:
        """Ask until enough clients have answered; arguments and errors are those of `ask`."""
        line, exchange = question.line, question.exchange
        waiting, answered = list(clients), list[Update]()
        for attempt in range(1, self.attempts + 1):
            missing = wanted - len(answered)
            now, waiting = waiting[: missing + spare], waiting[missing + spare :]
            if exchange is TRAINING:
                line.cohort += [client for client in now if client not in line.cohort]
            tasks = self.server.tasks(
                exchange, now, question.stage, line.number, question.arrays, question.asked
            )
            came = self._exchange(line, tasks, missing, question.evaluation)
            answered += came
            if len(answered) >= needed:
                return answered
            heard = {update.client for update in came}
            waiting += [client for client in now if client not in heard]
            if attempt < self.attempts:
                few = f"{len(answered)} of {plural(needed, 'answer')} needed"
                self.observer.note(f"{line.place}, {exchange.kind}: {few}; asking again")
        self.folder.append_metrics(line.record())
        raise FedmsError(self._too_few(line, exchange, len(answered), needed))

    def _too_few(self, line: Line, exchange: Exchange[Any, Any, Any], answered: int, needed: int) -> str:
        last = line.failures[-1]
        if exchange is FINAL_TEST:
            why = f"{last.client} could not be tested, so there is no result: {last.reason}"
            return f"{why}; go on with --resume"
        few = f"{answered} of {plural(needed, 'answer')} needed, after {plural(self.attempts, 'attempt')}"
        why = f"{last.client} {WORDS_OF_FAILURE[last.kind]}: {last.reason}"
        return f"{line.place}, {exchange.kind}: {few}; {why}; go on with --resume"

    def _exchange(self, line: Line, tasks: Sequence[Task], most: int, evaluation: bool) -> list[Update]:
        """Have tasks done and book their cost. Returns at most `most` admitted updates."""
        sent, received = self.engine.sent, self.engine.received
        self.folder.asked(task.client for task in tasks)
        began = time.perf_counter()
        answers = self.engine.run(tasks, Arrivals(self.observer, tasks))
        took = time.perf_counter() - began
        sent, received = self.engine.sent - sent, self.engine.received - received
        if evaluation:
            line.evaluation_bytes += sent + received
        else:
            line.downlink_bytes += sent
            line.uplink_bytes += received
        taken = self._taken(line, tasks, answers, most)
        ledger = self.server.ledger
        costs = [(update.client, Cost.of(update.metrics)) for update in taken]
        if evaluation:
            line.evaluation_flops += ledger.book(costs, evaluation=True)
        else:
            line.train_flops += ledger.book(costs)
            after = [(update.client, Cost.of(update.metrics.get("evaluation", {}))) for update in taken]
            line.evaluation_flops += ledger.book(after, evaluation=True)
            took *= _evaluation_share(costs, after)
        line.evaluation_seconds = round(line.evaluation_seconds + took, 4)
        self.server.record_delivery(tasks, taken)
        return taken

    def _taken(
        self, line: Line, tasks: Sequence[Task], answers: Sequence[Update | Failure], most: int
    ) -> list[Update]:
        """The answers that count. What is beyond them is not even looked at; of what is lost, a line each."""
        taken, lost = list[Update](), list[Failure]()
        for task, answer in zip(tasks, answers, strict=True):
            if isinstance(answer, Failure):
                lost.append(answer)
            elif len(taken) == most:
                line.surplus.append(task.client)
            else:
                try:
                    taken.append(self.admission.admitted(task, answer))
                except RefusalError as refused:
                    lost.append(Failure(task.client, "refused", str(refused)))
        line.failures += lost
        for each in lost:
            if each.kind == "lost":
                self.server.ledger.forget(each.client)
            self.observer.note(f"{each.client} {WORDS_OF_FAILURE[each.kind]} in {line.place}: {each.reason}")
        return taken


def _evaluation_share(training: Sequence[tuple[str, Cost]], evaluation: Sequence[tuple[str, Cost]]) -> float:
    """The share of the clients' work that was evaluation, by operations.

    Of the validation after local training, no client says how long it took.
    """
    judged = sum(cost.flops for _, cost in evaluation)
    trained = sum(cost.flops for _, cost in training)
    return judged / (trained + judged) if judged else 0.0
