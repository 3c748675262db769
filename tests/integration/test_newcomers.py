"""What a newcomer costs: a question to clients, a predictor, an aggregator and an engine, each written here
whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from fedms.engines import registry
from fedms.engines.host import respond
from fedms.experiments import experiment
from fedms.experiments.rounds import Line
from fedms.federation.aggregation.aggregator import Aggregator
from fedms.federation.aggregation.registry import AGGREGATORS, register_aggregator
from fedms.federation.client import ClientHost
from fedms.federation.client_view import ClientView
from fedms.federation.exchanges import EXCHANGES
from fedms.federation.exchanges.base import Answer, Asked, Exchange, Expected
from fedms.federation.exchanges.checks import RefusalError, check_shapes
from fedms.federation.messages import Failure, Task, Update, decode_answer, encode
from fedms.federation.methods import METHODS, register_method
from fedms.federation.prediction import PREDICTORS, ExpertOutputs, Predictor, register_predictor
from fedms.federation.recipe import Recipe

pytestmark = pytest.mark.integration


# a question: how many training samples of each class are there in all?


@dataclass(frozen=True)
class LabelCounts(Answer):
    counts: Tensor

    def arrays(self) -> dict[str, Tensor]:
        return {"counts": self.counts}

    @classmethod
    def of(cls, update: Update) -> Self:
        return cls(int(update.weight), update.arrays["counts"])


class CountsExchange(Exchange[Asked, LabelCounts, list[int]]):
    kind = "counts"
    split = "train"
    asked = Asked
    answered = LabelCounts

    def answer(self, view: ClientView, asked: Asked) -> LabelCounts:
        samples = view.samples("train")
        return LabelCounts(len(samples), torch.bincount(samples.labels, minlength=view.classes))

    def check(self, task: Task, update: Update, expected: Expected) -> None:
        check_shapes(update.arrays, {"counts": torch.empty(expected.classes, dtype=torch.long)})
        if int(update.arrays["counts"].sum()) != expected.declared["train"]:
            raise RefusalError("its counts are not those of its samples")

    def combine(self, answers: Sequence[LabelCounts], recipe: Recipe) -> list[int]:
        return [int(count) for count in torch.stack([answer.counts for answer in answers]).sum(0)]


def test_a_question_is_one_class_and_the_step_that_asks_it(tiny, tmp_path, monkeypatch):
    counting, found = CountsExchange(), list[Any]()
    monkeypatch.setitem(EXCHANGES, counting.kind, counting)

    class Counting(experiment.Experiment):
        def _finish(self) -> dict[str, Any]:
            line = Line("counts", 0, 0, 0, [])
            updates = self.rounds.ask(line, counting, self.server.clients, None)
            found.append((counting.result(updates, self.recipe), line.record(), self.world))
            return super()._finish()

    monkeypatch.setattr(experiment, "Experiment", Counting)
    experiment.run(tiny(), tmp_path / "run")
    [(counts, record, world)] = found
    labels = [world.samples(name, "train").labels for name in world.clients]
    assert counts == torch.bincount(torch.cat(labels), minlength=world.classes).tolist()
    assert record["uplink_bytes"] > 0 and record["downlink_bytes"] > 0 and record["failures"] == []


def test_a_lie_to_a_new_question_is_refused_by_its_own_check(tiny, tmp_path, monkeypatch):
    class Lying(CountsExchange):
        def answer(self, view: ClientView, asked: Asked) -> LabelCounts:
            answer = super().answer(view, asked)
            return replace(answer, counts=answer.counts + (view.client == "client-1"))

    lying = Lying()
    monkeypatch.setitem(EXCHANGES, lying.kind, lying)
    lines = []

    class Counting(experiment.Experiment):
        def _finish(self) -> dict[str, Any]:
            lines.append(Line("counts", 0, 0, 0, []))
            self.rounds.ask(lines[0], lying, self.server.clients, None)
            return super()._finish()

    monkeypatch.setattr(experiment, "Experiment", Counting)
    experiment.run(tiny(), tmp_path / "run")
    [failure] = lines[0].failures
    assert failure == Failure("client-1", "refused", "its counts are not those of its samples")


# a predictor: for each sample, the expert that is surer


class SurerExpert(Predictor):
    exports = ("global", "local")

    def judge(self, model: Any, runner: Any, samples: Any, boundary: int) -> ExpertOutputs:
        everyone = runner.frozen_outputs("global", model.global_expert, samples, boundary).logits
        own = runner.outputs(model.local_expert, samples, boundary).logits
        everyone, own = everyone.log_softmax(1), own.log_softmax(1)
        return ExpertOutputs(
            torch.where((own.max(1).values > everyone.max(1).values)[:, None], own, everyone)
        )


def test_a_predictor_is_one_class_and_a_methods_word(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("fedms.federation.prediction.PREDICTORS", PREDICTORS)
    register_predictor("surer", SurerExpert())
    register_method(replace(METHODS["fedavg-finetune"], name="surer", predicts="surer"))
    try:
        result = experiment.run(tiny("method=surer"), tmp_path / "run")
        tuned = experiment.run(tiny("method=fedavg-finetune"), tmp_path / "tuned")
    finally:
        del METHODS["surer"], PREDICTORS["surer"]
        from fedms.federation.method import PREDICTIONS

        PREDICTIONS.remove("surer")
    assert result["method"] == "surer" and result["frontier"] == [] and result["gate_global_share"] is None
    assert result["uplink_bytes"] != 0 and result["accuracy_global"] >= tuned["accuracy_global"]


# an aggregator: clients count alike, whatever their samples


def test_an_aggregator_is_one_function_and_its_declaration(tiny, tmp_path):
    seen = list[int]()

    def alike(shared: Any, updates: Sequence[Update], config: Any) -> dict[str, Tensor]:
        seen.append(len(updates))
        names = {name for update in updates for name in update.arrays}
        means = {
            name: torch.stack([u.arrays[name] for u in updates if name in u.arrays]).mean(0) for name in names
        }
        return {**shared, **means}

    register_aggregator(Aggregator("alike", alike))
    try:
        experiment.run(tiny("federation.aggregation=alike", "method=fedavg"), tmp_path / "run")
    finally:
        del AGGREGATORS["alike"]
        from fedms.config.federation import AGGREGATIONS

        AGGREGATIONS.remove("alike")
    assert seen == [2, 2]


# an engine: everything in this process, one task after the other


class HereAlone:
    workers = 1
    note = ""

    def __init__(self, world: Any, folder: Any, prefixes: Any = None) -> None:
        self.host = ClientHost(world, folder, prefixes=prefixes)
        self.sent = self.received = 0

    def run(self, tasks: Sequence[Task], arrived: Any = lambda answer: None) -> list[Update | Failure]:
        answers = list[Update | Failure]()
        for task in tasks:
            message = encode(task)
            data = respond(self.host, message)
            self.sent, self.received = self.sent + len(message), self.received + len(data)
            answers.append(decode_answer(data))
            arrived(answers[-1])
        return answers

    def peak_memory(self) -> int:
        return 0

    def close(self) -> None:
        self.host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def test_an_engine_is_one_class_and_comes_to_the_same_bits(tiny, tmp_path, finished, monkeypatch):
    monkeypatch.setitem(registry.ENGINES, "local", HereAlone)
    result = experiment.run(tiny(), tmp_path / "run")
    there = finished().result
    times = {"seconds", "evaluation_seconds", "peak_memory_bytes"}
    assert {key: result[key] for key in result.keys() - times} == {
        key: there[key] for key in there.keys() - times
    }
