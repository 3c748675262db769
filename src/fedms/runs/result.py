"""result.json: what an experiment came to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedms.config.privacy import PrivacyConfig
from fedms.federation.exchanges.selection import Selection
from fedms.federation.exchanges.testing import FinalTestAnswer, Judgement
from fedms.federation.prediction import PRIORS
from fedms.federation.recipe import Recipe
from fedms.federation.server import Server
from fedms.federation.sites import ServerSide
from fedms.model.gate import ADAPTER, NETWORK, fresh_gate
from fedms.model.heads import zero_head
from fedms.model.next_token import perplexity
from fedms.model.parts import fresh_lora, fresh_parts, trained_names

COSTS = ("uplink_bytes", "downlink_bytes", "evaluation_bytes", "train_flops", "evaluation_flops")
"""Sums over all rounds."""
SECONDS = ("evaluation_seconds", "seconds")


def make_result(
    world: ServerSide,
    server: Server,
    selection: Selection,
    answers: Sequence[FinalTestAnswer],
    lines: Sequence[Mapping[str, Any]],
    peak_memory: int,
) -> dict[str, Any]:
    """The content of result.json.

    Accuracies are on test data. `validation` holds the same on validation data, for choosing. `seconds` are
    those of all rounds, statistics and the test.
    """
    recipe = server.recipe
    method, learned = recipe.method, recipe.method.gate == "learned"
    trainable = trainable_parameters(world, server)
    own = known_figures(answers)
    told = len(own) == len(answers)  # a mean over some clients would be another figure
    tested = sum(answer.base_total or 0 for answer in answers)
    base = sum(answer.base_correct or 0 for answer in answers) / tested if told else None
    shared = [answer.shared_correct for answer in answers if answer.shared_correct is not None]
    return {
        "method": method.name,
        "seed": world.config.seed,
        "clients": len(world.clients),
        "rounds": sum(recipe.rounds(stage) for stage in recipe.stages),
        "prior": selection.prior,
        "head_share": server.head_share,
        "label_prior": server.label_prior if recipe.has_local and recipe.has_common_start else None,
        "interpolation": selection.interpolation if method.predicts == "mixture" else None,
        "evidence_scales": list(selection.evidence_scales) if learned else None,
        **_accuracies(answers, "test"),
        **(_losses(answers, "test") | {"task": "text"} if recipe.of_text else {}),
        "accuracy_global_shared": sum(shared) / tested if len(shared) == len(answers) else None,
        "accuracy_base": base,
        "gate_global_share": _mean([each.global_share for each in own]) if told else None,
        "gate_global_share_everyone": _mean(
            [each.judged["test_everyone"].global_share for each in answers if "test_everyone" in each.judged]
        ),
        "gate_networks_kept": sum(answer.network_kept for answer in answers) if learned else None,
        "trainable_parameters": trainable,
        "trainable_fraction": trainable / world.backbone.parameter_count,
        **{key: sum(line.get(key, 0) for line in lines) for key in COSTS},
        **{key: round(sum(line.get(key, 0) for line in lines), 3) for key in SECONDS},
        "peak_memory_bytes": peak_memory,
        "validation": _on_validation(answers, recipe) if world.config.evaluation.validation else None,
        **({"privacy": _privacy(world.config.privacy, answers)} if recipe.private else {}),
        "per_client": [_client(answer) for answer in answers],
        "partition": {
            "classes": list(world.class_names),
            "clients": list(world.clients),
            "counts": world.label_counts(),
        },
    }


def known_figures(answers: Sequence[FinalTestAnswer], of: str = "test_own") -> list[Judgement]:
    """Of the clients that tell them: a site may keep them."""
    return [each.judged[of] for each in answers if of in each.judged]


def _on_validation(answers: Sequence[FinalTestAnswer], recipe: Recipe) -> dict[str, Any]:
    losses = _losses(answers, "validation") if recipe.of_text else {}
    return _accuracies(answers, "validation") | losses


def _privacy(privacy: PrivacyConfig, answers: Sequence[FinalTestAnswer]) -> dict[str, Any]:
    """What is promised, and what each client's ledger says that it has spent of it.

    `in_the_clear` names what no noise covers.
    """
    return {
        "unit": privacy.unit,
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "noise": privacy.noise,
        "protects": privacy.protects,
        "in_the_clear": ["numbers of samples", "test accuracies"],
        "spent": {answer.client: answer.epsilon for answer in answers},
    }


def _losses(answers: Sequence[FinalTestAnswer], split: str) -> dict[str, Any]:
    """Of texts: mean -log p of a token in nats, and its exponential, a perplexity. Lower is better.

    Means are over clients, of each one's mean over its tokens. The untrained model and the global expert are
    judged on test data alone.
    """
    own = [answer.judged[f"{split}_own"] for answer in answers]
    name = f"{split}_everyone"
    everyone = [each.judged[name] for each in answers if name in each.judged]
    losses = [judged.nll for judged in own if judged.nll is not None]
    worst = sorted(losses, reverse=True)[: max(1, math.ceil(len(losses) / 10))]
    found = {
        "local": _mean(losses),
        "local_worst": _mean(worst),
        "global": _mean([judged.nll for judged in everyone]) if len(everyone) == len(own) else None,
    }
    if split == "test":
        found["global_shared"] = _mean([answer.shared_nll for answer in answers])
        found["base"] = _mean([answer.base_nll for answer in answers])
    return {f"nll_{name}": loss for name, loss in found.items()} | {
        f"perplexity_{name}": None if loss is None else perplexity(loss) for name, loss in found.items()
    }


def _client(answer: FinalTestAnswer) -> dict[str, Any]:
    own, everyone = answer.judged.get("test_own"), answer.judged.get("test_everyone")
    losses = {}
    if own is not None and own.nll is not None:
        losses = {"nll_local": own.nll, "nll_global": everyone and everyone.nll}
    return {
        "name": answer.client,
        "samples": answer.samples,
        "accuracy_local": own.accuracy if own else None,
        "accuracy_global": everyone.accuracy if everyone else None,
        "gate_global_share": own.global_share if own else None,
        **losses,
    }


def _accuracies(answers: Sequence[FinalTestAnswer], split: str) -> dict[str, Any]:
    own, everyone = known_figures(answers, f"{split}_own"), known_figures(answers, f"{split}_everyone")
    if len(everyone) < len(answers):  # a mean over some clients would be another figure
        everyone = []
    if len(own) < len(answers):
        own = []
    accuracies = [judged.accuracy for judged in own]
    worst = sorted(accuracies)[: max(1, math.ceil(len(accuracies) / 10))]
    return {
        "accuracy_local": _mean(accuracies),
        "accuracy_local_worst": _mean(worst),
        "accuracy_global": _mean([judged.accuracy for judged in everyone]),
        "frontier": _frontier(own, everyone),
    }


def _frontier(own: Sequence[Judgement], everyone: Sequence[Judgement]) -> list[dict[str, float | None]]:
    """Mean accuracies at each prior; empty where predictions do not move with it."""
    curves = [[each.frontier for each in judged if each.frontier is not None] for judged in (own, everyone)]
    losses = [[each.nll_frontier for each in judged if each.nll_frontier] for judged in (own, everyone)]
    if not curves[0]:
        return []
    return [
        {
            "prior": prior,
            "accuracy_local": _mean([curve[place] for curve in curves[0]]),
            "accuracy_global": _mean([curve[place] for curve in curves[1]]),
            **(
                {
                    f"nll_{name}": _mean([curve[place] for curve in of])
                    for name, of in zip(("local", "global"), losses, strict=True)
                }
                if losses[0]
                else {}
            ),
        }
        for place, prior in enumerate(PRIORS)
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def trainable_parameters(world: ServerSide, server: Server) -> int:
    """How many numbers training may change in one client's final model: its experts' active pairs and heads,
    its gate.
    """
    config, backbone = world.config, world.backbone
    total = 0
    for stage in {stage.expert: stage for stage in server.recipe.stages}.values():
        active = server.trained(stage)
        arrays = fresh_lora(backbone, active, config.lora.rank, 0) | zero_head(
            world.classes, backbone.feature_size
        )
        arrays |= fresh_parts(backbone, stage.trains, active, config.model.prompt_tokens, 0)
        names = trained_names(backbone, stage.trains, active, config.head.kind)
        total += sum(arrays[name].numel() for name in names)
        if "gate" in stage.trains and config.gate.network:
            gate = fresh_gate(backbone.feature_size, config.gate.adapter_rank, config.gate.hidden, 0, "")
            total += sum(gate[name].numel() for name in (*ADAPTER, *NETWORK))
    return total
