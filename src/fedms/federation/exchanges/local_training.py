"""A round of local training.

What leaves a client: the arrays that the stage shares, its mean training loss, and its hits on its validation
data: of its personal model in a local stage, in the global one of what it was sent, where that is asked. All
else that it trains stays in its folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fedms.core import seeds
from fedms.data.federated import Samples
from fedms.federation.assembly import (
    received_calibrated,
    with_own_knowledge,
)
from fedms.federation.client_view import ClientView
from fedms.federation.exchanges import uplink
from fedms.federation.exchanges.base import Answer, Asked, Cost, Exchange, Expected
from fedms.federation.exchanges.checks import ROUNDING, RefusalError, check_number, check_shapes
from fedms.federation.exchanges.evaluation import Hits, check_hits, score, shared_hits
from fedms.federation.exchanges.local_gate import continue_gate, start_gate
from fedms.federation.initialization import ARRIVED, expert_at_start, local_start, training_names
from fedms.federation.messages import Task, Update
from fedms.federation.method import Stage, rates
from fedms.federation.personal_model import PersonalModel
from fedms.federation.recipe import Recipe
from fedms.federation.secure.encoding import Range, around, between
from fedms.federation.tiers import trainable
from fedms.federation.token_prediction import judge_tokens
from fedms.model.arrays import Arrays, prefixed
from fedms.model.backbone import Backbone
from fedms.model.expert import Expert
from fedms.model.gate import fresh_gate, shared_names
from fedms.model.parts import fresh_lora, group, part_of, trained_names
from fedms.training.expert_training import Plan, reach, train_expert
from fedms.training.gate_training import GATE_BATCH, GATE_DECAY
from fedms.training.passages import token_loss

LARGEST_LOSS = 100.0
"""Mean loss of a client's round, in nats, above which a secure sum counts no more."""


@dataclass(frozen=True)
class TrainingAsked(Asked):
    """A round of local training."""

    validates: bool = False
    """Whether the client also validates what it was sent, as it was before this training. So the validation
    of a round of the global stage travels with the next round's training."""


@dataclass(frozen=True)
class Validation:
    """Validation of the personal model after a local round, or of the shared one before a global round."""

    hits: Hits
    cost: Cost
    """Of this validation alone."""


@dataclass(frozen=True)
class TrainingAnswer(Answer):
    """What a client has trained and shares."""

    shared: Arrays
    """Packed, as `federation.uplink` says"""
    loss: float | None
    """Mean over the samples of the last pass; None where it is private."""
    cost: Cost
    """Of training, the validation apart."""
    validation: Validation | None = None
    """Of a local stage, or where it is asked."""

    def arrays(self) -> dict[str, Tensor]:
        """What is shared."""
        return self.shared

    def metrics(self) -> dict[str, Any]:
        """Loss, costs, and the validation."""
        said: dict[str, Any] = {"loss": self.loss, "flops": self.cost.flops, "once": self.cost.once}
        if self.validation is not None:
            hits = self.validation.hits
            said |= {"validated": hits.samples, **hits.metrics()}
            said["evaluation"] = {"flops": self.validation.cost.flops, "once": self.validation.cost.once}
        return said

    @classmethod
    def of(cls, update: Update) -> Self:
        """What an update says."""
        said = update.metrics
        validation = None
        if "validated" in said:
            hits = Hits.of(replace(update, weight=said["validated"]))
            validation = Validation(hits, Cost.of(said.get("evaluation", {})))
        return cls(int(update.weight), update.arrays, said.get("loss"), Cost.of(said), validation)


@dataclass(frozen=True)
class RoundResult:
    """What a round came to, the new shared arrays apart."""

    train_loss: float | None
    """Mean over the samples of all clients; None where clients do not say it."""
    validation_score: float | None
    """Accuracy over all clients' validation samples, or of texts mean log p over their tokens; in the global
    stage of what the round began with, where that was asked."""


@dataclass
class Begun:
    """What a round of one client's local training begins with."""

    stage: Stage
    samples: Samples
    expert: Expert
    plan: Plan
    order: np.random.Generator
    """Of its batches"""
    gate: Arrays = field(default_factory=dict)


class TrainingExchange(Exchange[TrainingAsked, TrainingAnswer, RoundResult]):
    """Local training in three steps, so that several clients can train in one batch between the first and the
    last.
    """

    kind = "train"
    split = "train"
    asked = TrainingAsked
    answered = TrainingAnswer

    def answer(self, view: ClientView, asked: TrainingAsked) -> TrainingAnswer:
        """Train alone."""
        begun, training = self.begin(view), view.config.training
        loss = train_expert(
            view.runner, begun.expert, begun.plan, begun.samples, view.boundary, training, begun.order
        )
        return self.conclude(view, begun, loss, asked)

    def begin(self, view: ClientView) -> Begun:
        """All that a round of local training begins with."""
        stage = view.recipe.stages[view.version[0]]
        samples = view.samples("train")
        expert, names = expert_at_start(view, stage), training_names(view, stage)
        gate, also, loss = start_gate(view, stage, samples)
        anchor: Arrays = {}
        if stage.pull == "sent":
            anchor = dict(expert.arrays)
        elif stage.pull == "start":
            anchor = local_start(view, stage)
        plan = Plan(
            names,
            rates(stage, view.config.training),
            stage.phases,
            {name: array.to(view.backbone.device) for name, array in anchor.items()},
            view.config.training.proximal if stage.pull else 0.0,
            loss,
            also,
            view.recipe.objective,
            stage.expert == "local" and view.recipe.method.trains_heads_alone(view.config),
            token_loss if view.recipe.of_text else None,
            _remedy(view, stage),
        )
        order = seeds.numpy_generator(view.config.seed, "batches", stage.budget, view.version[1], view.client)
        return Begun(stage, samples, expert, plan, order, gate)

    def conclude(self, view: ClientView, begun: Begun, loss: float, asked: TrainingAsked) -> TrainingAnswer:
        """The answer once the expert has trained. A gate that trains by itself does so now."""
        stage, expert, gate = begun.stage, begun.expert, begun.gate
        if begun.plan.also:
            gate = {name: array.detach().cpu() for name, array in gate.items()}
        elif gate:
            gate = continue_gate(view, stage, begun.samples, gate)
        shared = {name: expert.arrays[name] for name in begun.plan.names if group(name) in stage.shares}
        travels = "gate" in stage.shares and view.config.gate.network
        gate_shared = shared_names(view.config.gate.share) if travels else ()
        cost, validation = Cost(view.runner.flops, view.runner.once), None
        sent, arrives = _packed(view, stage, shared | {name: gate[name] for name in gate_shared})
        if stage.expert == "local":
            private = {name: array for name, array in gate.items() if name not in gate_shared}
            _keep(view, stage, expert, private | arrives)
            validation = _validate(view, gate | prefixed(expert.arrays, "local/"), cost.flops)
        elif asked.validates:
            hits = shared_hits(view)
            validation = Validation(hits, Cost(view.runner.flops - cost.flops, view.runner.once))
        return TrainingAnswer(len(begun.samples), sent, loss, cost, validation)

    def unpacked(self, task: Task, update: Update, expected: Expected) -> Update:
        """With the arrays that `federation.uplink` packed."""
        form = expected.recipe.config.federation.uplink
        if form == "float32":
            return update
        starts = _expected_starts(task, expected.recipe.method.stage(task.stage), expected)
        return replace(update, arrays=uplink.unpacked(update.arrays, starts, form))

    def declares(self, task: Task, update: Update, expected: Expected) -> dict[str, int]:
        """Training samples, and where the client validates, validation samples, too."""
        declared = super().declares(task, update, expected)
        if _validates(task, expected.recipe.method.stage(task.stage)) and not expected.recipe.private:
            declared["validation"] = expected.samples("validation", update.metrics.get("validated"))
        return declared

    def check(self, task: Task, update: Update, expected: Expected) -> None:
        """What the stage shares of what this client can train, no further from its start than training
        reaches.
        """
        stage = expected.recipe.method.stage(task.stage)
        starts = _expected_starts(task, stage, expected)
        check_shapes(update.arrays, starts)
        slack = 1 + ROUNDING + uplink.overshoot(expected.recipe.config.federation.uplink)
        for name, start in starts.items():
            moved_by = float((update.arrays[name].double() - start.double()).abs().max())
            furthest = _furthest(task, stage, name, start, expected)
            if moved_by > furthest * slack + ROUNDING * float(start.abs().max()):
                reason = f"{name} is {moved_by:.3g} away from its start, and training reaches {furthest:.3g}"
                raise RefusalError(reason)
        if expected.recipe.private:
            return
        if not math.isfinite(check_number(update.metrics.get("loss"), "loss")):
            raise RefusalError("loss is not finite")
        if _validates(task, stage):
            check_hits(update, expected)
        elif "validated" in update.metrics:
            raise RefusalError("it validates, and was not asked to")

    def ranges(self, task: Task, expected: Expected) -> dict[str, Range] | None:
        """Arrays no further from their start than training reaches, loss and hits, all times samples; of a
        private client none.
        """
        if expected.recipe.private:
            return None
        stage, samples = expected.recipe.method.stage(task.stage), expected.declared["train"]
        ranges = {}
        for name, start in _expected_starts(task, stage, expected).items():
            furthest = _furthest(task, stage, name, start, expected) * (1 + ROUNDING)
            furthest += ROUNDING * float(start.abs().max())
            ranges[name] = around(samples * start.double(), samples * furthest)
        ranges["loss"] = between((), 0.0, LARGEST_LOSS * samples)
        if _validates(task, stage):
            ranges["correct"] = between((), 0, expected.declared["validation"], whole=True)
        return ranges

    def addends(self, update: Update, expected: Expected) -> dict[str, Tensor]:
        """Arrays, loss and hits, times samples where a mean is wanted."""
        found = {name: update.weight * array.double() for name, array in update.arrays.items()}
        found["loss"] = torch.tensor(update.weight * min(update.metrics["loss"], LARGEST_LOSS))
        if "correct" in update.metrics:
            found["correct"] = torch.tensor(update.metrics["correct"])
        return found

    def summed(self, totals: Mapping[str, Tensor], parts: Mapping[str, Sequence[Expected]]) -> Update:
        """The weighted mean of each array, the mean loss, and all hits."""
        weights = {name: sum(each.declared["train"] for each in clients) for name, clients in parts.items()}
        means = {name: total / weights[name] for name, total in totals.items() if name != "correct"}
        metrics: dict[str, Any] = {"loss": float(means.pop("loss"))}
        if "correct" in totals:
            metrics["validated"] = sum(each.declared["validation"] for each in parts["correct"])
            metrics["correct"] = int(totals["correct"])
        arrays = {name: mean.float() for name, mean in means.items()}
        return Update("", arrays, float(weights["loss"]), metrics)

    def combine(self, answers: Sequence[TrainingAnswer], recipe: Recipe) -> RoundResult:
        """Mean loss over samples, and the score of the validation. Arrays are for the aggregator."""
        total = sum(float(answer.samples) for answer in answers)
        losses = [float(answer.samples) * answer.loss for answer in answers if answer.loss is not None]
        loss = sum(losses) / total if losses else None
        hits = [answer.validation.hits for answer in answers if answer.validation is not None]
        return RoundResult(loss, score(hits) if hits else None)


# both sides


def _validates(task: Task, stage: Stage) -> bool:
    return stage.expert == "local" or TrainingAsked.of(task).validates


def _starts(
    sent: Arrays,
    stage: Stage,
    client: str,
    recipe: Recipe,
    backbone: Backbone,
    blocks: Sequence[int],
    rank: int,
) -> Arrays:
    """The arrays that a client shares, as a task with the arrays `sent` has it begin."""
    config = recipe.config
    groups = [each for each in stage.trains if each in stage.shares]
    starts = dict(sent)
    if stage.average == "beside":  # the client goes on from its own arrays, and those from the common start
        starts |= fresh_lora(backbone, blocks, rank, config.seed)
    names = trained_names(backbone, groups, blocks, config.head.kind)
    if "gate" in groups and config.gate.network:
        gate = config.gate
        own = fresh_gate(backbone.feature_size, gate.adapter_rank, gate.hidden, config.seed, client)
        starts = own | starts
        names += shared_names(gate.share)
    return {name: starts[name].cpu() for name in names}


# the client's side


def _remedy(view: ClientView, stage: Stage) -> str:
    """What to do if training diverges: which learning rates to lower, and what they are."""
    training = view.config.training
    if stage.expert == "local":
        return f"lower training.local_learning_rate ({training.local_learning_rate:g})"
    head = f"training.head_learning_rate ({training.head_learning_rate:g})"
    if set(stage.trains) == {"head"}:
        return f"lower {head}"
    return f"lower training.learning_rate ({training.learning_rate:g}) or {head}"


def _packed(view: ClientView, stage: Stage, shared: Arrays) -> tuple[Arrays, Arrays]:
    """What travels of the shared arrays; and what of it the server will have, where the client subtracts its
    own part from the average later and so must keep it.
    """
    form = view.config.federation.uplink
    if form == "float32":
        return shared, {}
    starts = _starts(view.arrays, stage, view.client, view.recipe, view.backbone, view.blocks, view.rank)

    def draw(name: str) -> torch.Generator:
        return seeds.torch_generator(
            view.config.seed, "uplink", stage.name, view.version[1], view.client, name
        )

    sent = uplink.packed(shared, starts, form, draw)
    arrived = uplink.unpacked(sent, starts, form) if stage.average == "beside" else {}
    return sent, prefixed(arrived, ARRIVED)


def _keep(view: ClientView, stage: Stage, expert: Expert, gate: Arrays) -> None:
    """Save what the client trained and does not send."""
    private = {
        name: array
        for name, array in expert.arrays.items()
        if (stage.average == "beside" or group(name) not in stage.shares) and part_of(name)
    }
    view.keep(gate | prefixed(private, "local/"), {"stage": stage.name, "round": view.version[1]})


def _validate(view: ClientView, trained: Mapping[str, Tensor], spent: int) -> Validation:
    """The personal model on the client's validation data; `spent` are the operations before it."""
    samples = view.samples("validation")
    arrays = received_calibrated(view) | dict(trained)
    model = with_own_knowledge(view, PersonalModel(arrays, view.recipe.method, view.config))
    if view.recipe.of_text:
        said = judge_tokens(model, view.runner, samples, view.boundary)
        likelihood = said.log_likelihood(view.config.gate.prior)
        hits = Hits(len(samples), likelihood, said.tokens)
        return Validation(hits, Cost(view.runner.flops - spent, view.runner.once))
    outputs = view.recipe.predictor.judge(model, view.runner, samples, view.boundary)
    correct = round(outputs.accuracy(samples.labels, view.config.gate.prior) * len(samples))
    return Validation(Hits(len(samples), correct), Cost(view.runner.flops - spent, view.runner.once))


# the server's side


def _expected_starts(task: Task, stage: Stage, expected: Expected) -> Arrays:
    """The arrays that the client answers with, as its training found them."""
    recipe = expected.recipe
    blocks = trainable(task.settings["active"], expected.capacity, recipe.config.activation.order)
    return _starts(task.arrays, stage, task.client, recipe, expected.backbone, blocks, expected.rank)


def _furthest(task: Task, stage: Stage, name: str, start: Tensor, expected: Expected) -> float:
    """How far training can have moved the numbers of this array."""
    training, gate = expected.recipe.config.training, expected.recipe.config.gate
    samples = expected.declared["train"]
    steps = -(-samples // training.batch_size) * training.epochs
    decay, largest = training.weight_decay, float(start.abs().max())
    part = group(name)
    if part == "gate":
        if gate.objective == "own-or-everyone":
            steps, decay = -(-2 * samples // GATE_BATCH) * gate.epochs, GATE_DECAY
        return reach(steps, gate.learning_rate, decay, largest)
    if stage.average == "beside":
        stages = expected.recipe.stages
        before = stages[: stages.index(stage)]
        steps *= task.round + sum(expected.recipe.rounds(each) for each in before)
    return reach(steps, rates(stage, training)[part != "head"], decay, largest)
