"""Which answers count: what an honest client can have sent, given what it was asked.

Everything that is checked follows from the task and the config, so no honest client is ever refused, however skewed its data. How far
training can move a number is bounded by its steps and the learning rate (`training.reach`), for AdamW's steps are bounded whatever
the gradients. What is plausible but untrue passes: that is for `robust`, and docs/reliability.md says what is not promised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedms.core.errors import FedmsError
from fedms.federation.messages import Task, Update
from fedms.federation.method import Stage, rates
from fedms.federation.prediction import EVEN, INTERPOLATIONS, PRIORS, SCALES
from fedms.federation.server import Server
from fedms.federation.tiers import trainable
from fedms.model import gate as gates
from fedms.model.arrays import Arrays
from fedms.model.discriminant import TEMPERATURES
from fedms.model.parts import fresh_lora, group, trained_names
from fedms.training.expert_training import reach
from fedms.training.gate_training import GATE_BATCH, GATE_DECAY

ROUNDING = 1e-3
"""How far, in parts of a bound, float32 may carry an honest number beyond it."""


class RefusalError(FedmsError):
    """Why an answer does not count, in one line."""


class Admission:
    """Checks answers for a server, which keeps what clients have declared."""

    def __init__(self, server: Server, classes: int, capacities: Mapping[str, int]) -> None:
        self.server = server
        self.config = server.config
        self.classes = classes
        self.capacities = capacities

    def refusal(self, task: Task, update: Update) -> str | None:
        """Why this answer to the task does not count; None, and its numbers of samples are declared, where it does."""
        try:
            declared = self._check(task, update)
        except RefusalError as refused:
            return str(refused)
        self.server.declared.setdefault(task.client, {}).update(declared)
        return None

    def _check(self, task: Task, update: Update) -> dict[str, int]:
        """The numbers of samples that it declares, by split."""
        if update.client != task.client:
            raise RefusalError("it answers in another client's name")
        split = "train" if task.kind in ("statistics", "train", "test") else "validation"
        declared = {split: self._samples(task, split, update.weight)}
        if task.kind == "train" and self._stage(task).expert == "local":
            declared["validation"] = self._samples(task, "validation", update.metrics.get("validated"))
        for name, array in update.arrays.items():
            if array.is_floating_point() and not array.isfinite().all():
                raise RefusalError(f"{name} is not finite")
        for costs in (update.metrics, update.metrics.get("evaluation", {})):
            _check_costs(costs)
        getattr(self, f"_check_{task.kind}")(task, update, declared)
        return declared

    def _samples(self, task: Task, split: str, value: Any) -> int:
        count = _whole(value, f"its number of {split} samples", least=1)
        known = self.server.declared.get(task.client, {}).get(split, count)
        if count != known:
            raise RefusalError(f"it speaks for {count} {split} samples, and declared {known}")
        return count

    # kinds of tasks

    def _check_statistics(self, task: Task, update: Update, declared: Mapping[str, int]) -> None:
        """Sums over so many features, each of length sqrt(d)."""
        size, rank, samples = (
            self.server.backbone.feature_size,
            self.config.statistics.rank,
            declared["train"],
        )
        shapes: dict[str, tuple[int, ...]] = {
            "statistics.counts": (self.classes,),
            "statistics.sums": (self.classes, size),
        }
        if rank is None or rank >= size:
            shapes["statistics.second"] = (size * (size + 1) // 2,)
        else:
            shapes |= {"statistics.factor": (size, rank), "statistics.rest": (1,)}
        _check_shapes(
            update.arrays, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        )
        arrays = {name: array.double() for name, array in update.arrays.items()}
        counts = arrays["statistics.counts"]
        if (counts < 0).any() or not torch.equal(counts, counts.round()) or float(counts.sum()) != samples:
            raise RefusalError(f"statistics.counts are not {samples} samples counted")
        if (arrays["statistics.sums"].norm(dim=1) > counts * math.sqrt(size) * (1 + ROUNDING)).any():
            raise RefusalError("statistics.sums are larger than its samples' features can make them")
        most = samples * size * (1 + ROUNDING)
        if "statistics.second" in arrays:
            large = float(arrays["statistics.second"].abs().max()) > most
        else:
            large = (
                float(arrays["statistics.factor"].square().sum()) > most
                or not 0 <= float(arrays["statistics.rest"]) <= most
            )
        if large:
            raise RefusalError("the second moment is larger than its samples' features can make it")

    def _check_calibrate(self, task: Task, update: Update, declared: Mapping[str, int]) -> None:
        _check_likelihood(update, "calibrate.log_likelihood", len(TEMPERATURES), declared["validation"])

    def _check_interpolate(self, task: Task, update: Update, declared: Mapping[str, int]) -> None:
        _check_likelihood(update, "interpolate.log_likelihood", len(INTERPOLATIONS), declared["validation"])

    def _check_weigh(self, task: Task, update: Update, declared: Mapping[str, int]) -> None:
        candidates = len(PRIORS) if self.server.method.gate == "constant" else len(EVEN) * len(SCALES)
        _check_likelihood(update, "weigh.log_likelihood", candidates, declared["validation"])

    def _check_evaluate(self, task: Task, update: Update, declared: Mapping[str, int]) -> None:
        _check_shapes(update.arrays, {})
        _whole(update.metrics.get("correct"), "correct", most=declared["validation"])

    def _check_test(self, task: Task, update: Update, declared: Mapping[str, int]) -> None:
        _check_shapes(update.arrays, {})
        metrics = update.metrics
        self._samples(task, "train", metrics.get("samples"))
        _whole(
            metrics.get("base_correct"),
            "base_correct",
            most=_whole(metrics.get("base_total"), "base_total", least=1),
        )
        if not isinstance(metrics.get("network_kept"), bool):
            raise RefusalError("network_kept is not true or false")
        for whose in (
            f"{split}_{of}" for split in self.config.evaluation.splits for of in ("own", "everyone")
        ):
            _check_share(metrics.get(whose), whose)
            if (share := metrics.get(f"{whose}_global_share")) is not None or self.server.method.predicts in (
                "mixture",
                "blend",
            ):
                _check_share(share, f"{whose}_global_share")
            if self.server.method.has_frontier:
                frontier = metrics.get(f"{whose}_frontier")
                if not isinstance(frontier, list) or len(frontier) != len(PRIORS):
                    raise RefusalError(f"{whose}_frontier is not {len(PRIORS)} accuracies")
                for accuracy in frontier:
                    _check_share(accuracy, f"{whose}_frontier")

    def _check_train(self, task: Task, update: Update, declared: Mapping[str, int]) -> None:
        """What the stage shares of what this client can train, no further from its start than training reaches."""
        stage = self._stage(task)
        starts = self._starts(task, stage)
        _check_shapes(update.arrays, starts)
        for name, start in starts.items():
            moved = float((update.arrays[name].double() - start.double()).abs().max())
            furthest = self._reach(task, stage, name, start, declared["train"])
            if moved > furthest * (1 + ROUNDING) + ROUNDING * float(start.abs().max()):
                raise RefusalError(
                    f"{name} is {moved:.3g} away from its start, and training reaches {furthest:.3g}"
                )
        if not math.isfinite(_number(update.metrics.get("loss"), "loss")):
            raise RefusalError("loss is not finite")
        if stage.expert == "local":
            _whole(update.metrics.get("correct"), "correct", most=declared["validation"])

    # training

    def _stage(self, task: Task) -> Stage:
        return self.server.method.stage(task.stage)

    def _starts(self, task: Task, stage: Stage) -> Arrays:
        """The arrays that the client answers with, as its training found them."""
        config, backbone = self.config, self.server.backbone
        blocks = trainable(task.settings["active"], self.capacities[task.client], config.activation.order)
        groups = [group for group in stage.trains if group in stage.shares]
        starts = dict(task.arrays)
        if stage.average == "beside":  # it goes on from its own, and that from what everybody begins with
            starts |= fresh_lora(backbone, blocks, self.server.ranks[task.client], config.seed)
        names = trained_names(backbone, groups, blocks, config.head.kind)
        if "gate" in groups and config.gate.network:
            gate = config.gate
            own = gates.fresh_gate(
                backbone.feature_size, gate.adapter_rank, gate.hidden, config.seed, task.client
            )
            starts = own | starts
            names += gates.shared_names(gate.share)
        return {name: starts[name].cpu() for name in names}

    def _reach(self, task: Task, stage: Stage, name: str, start: Tensor, samples: int) -> float:
        """How far training can have carried the numbers of this array."""
        training, gate = self.config.training, self.config.gate
        steps, decay, largest = (
            -(-samples // training.batch_size) * training.epochs,
            training.weight_decay,
            float(start.abs().max()),
        )
        part = group(name)
        if part == "gate":
            if gate.objective == "own-or-everyone":
                steps, decay = -(-2 * samples // GATE_BATCH) * gate.epochs, GATE_DECAY
            return reach(steps, gate.learning_rate, decay, largest)
        if stage.average == "beside":
            steps *= self._rounds_so_far(task, stage)
        return reach(steps, rates(stage, training)[part != "head"], decay, largest)

    def _rounds_so_far(self, task: Task, stage: Stage) -> int:
        stages = self.server.method.stages
        return task.round + sum(self.server.rounds(before) for before in stages[: stages.index(stage)])


def _check_shapes(arrays: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    if missing := sorted(wanted.keys() - arrays.keys()):
        raise RefusalError(f"{missing[0]} is missing")
    if unknown := sorted(arrays.keys() - wanted.keys()):
        raise RefusalError(f"{unknown[0][:80]!r} was not asked for")
    for name, like in wanted.items():
        if arrays[name].shape != like.shape:
            raise RefusalError(f"{name} is of shape {list(arrays[name].shape)}, not {list(like.shape)}")
        if arrays[name].dtype != like.dtype:
            raise RefusalError(f"{name} is {arrays[name].dtype}, not {like.dtype}".replace("torch.", ""))


def _check_costs(costs: Any) -> None:
    if not isinstance(costs, dict):
        raise RefusalError("its costs are no table")
    _whole(costs.get("flops", 0), "flops")
    once = costs.get("once", {})
    if not isinstance(once, dict):
        raise RefusalError("once is not a table")
    for entry in once.values():
        if not (isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)):
            raise RefusalError("once is not a table of names and costs")
        _whole(entry[1], "a cost in once")


def _check_likelihood(update: Update, name: str, length: int, samples: int) -> None:
    _check_shapes(update.arrays, {name: torch.empty(length, device="meta")})
    if float(update.arrays[name].max()) > ROUNDING * samples:
        raise RefusalError(f"{name} is above zero")


def _check_share(value: Any, name: str) -> None:
    if not -ROUNDING <= _number(value, name) <= 1 + ROUNDING:
        raise RefusalError(f"{name} is not between 0 and 1")


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusalError(f"{name} is not a number")
    return value


def _whole(value: Any, name: str, least: int = 0, most: int | None = None) -> int:
    number = _number(value, name)
    if not math.isfinite(number) or number != int(number) or number < least:
        raise RefusalError(f"{name} is not a whole number of at least {least}")
    if most is not None and number > most:
        raise RefusalError(f"{name} is more than {most}")
    return int(number)
