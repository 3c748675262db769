"""The content of result.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedms.federation.messages import Update
from fedms.federation.method import Method
from fedms.federation.prediction import PRIORS
from fedms.federation.server import Server
from fedms.federation.world import World
from fedms.model.gate import ADAPTER, NETWORK, fresh_gate
from fedms.model.heads import zero_head
from fedms.model.parts import fresh_lora, fresh_parts, trained_names

COSTS = ("uplink_bytes", "downlink_bytes", "evaluation_bytes", "train_flops", "evaluation_flops")
"""Costs that are summed over all lines of metrics.jsonl."""


def make_result(
    world: World,
    method: Method,
    updates: Sequence[Update],
    records: Sequence[dict[str, Any]],
    peak_memory: int,
    server: Server,
) -> dict[str, Any]:
    """The content of result.json.

    Accuracies are on test data. `validation` holds the same accuracies on validation data, to choose
    settings.

    Args:
        updates: the answers of all clients to the final test.
        records: the lines of metrics.jsonl.
        peak_memory: bytes.
    """
    found = sorted(updates, key=lambda update: update.client)
    metrics = [update.metrics for update in found]
    trainable = trainable_parameters(world, method, server)
    counts = world.partition.counts(world.dataset.labels, world.classes)
    return {
        "method": method.name,
        "seed": world.config.seed,
        "clients": len(world.clients),
        "rounds": sum(server.rounds(stage) for stage in method.stages),
        "prior": server.prior,
        "interpolation": server.interpolation if method.predicts == "mixture" else None,
        "evidence_scales": list(server.evidence_scales) if method.gate == "learned" else None,
        **_accuracies(metrics, "test"),
        "accuracy_base": sum(m["base_correct"] for m in metrics) / sum(m["base_total"] for m in metrics),
        "gate_global_share": _mean([m["test_own_global_share"] for m in metrics]),
        "gate_global_share_everyone": _mean([m["test_everyone_global_share"] for m in metrics]),
        "gate_networks_kept": sum(m["network_kept"] for m in metrics) if method.gate == "learned" else None,
        "trainable_parameters": trainable,
        "trainable_fraction": trainable / world.backbone.parameter_count,
        **{key: sum(record[key] for record in records) for key in COSTS},
        **{
            key: round(sum(record[key] for record in records), 3) for key in ("evaluation_seconds", "seconds")
        },
        "peak_memory_bytes": peak_memory,
        "validation": _accuracies(metrics, "validation") if world.config.evaluation.validation else None,
        "per_client": [
            {
                "name": update.client,
                "samples": update.metrics["samples"],
                "accuracy_local": update.metrics["test_own"],
                "accuracy_global": update.metrics["test_everyone"],
                "gate_global_share": update.metrics["test_own_global_share"],
            }
            for update in found
        ],
        "partition": {
            "classes": list(world.dataset.class_names),
            "clients": list(world.clients),
            "counts": counts.tolist(),
        },
    }


def _accuracies(metrics: Sequence[dict[str, Any]], split: str) -> dict[str, Any]:
    own = [m[f"{split}_own"] for m in metrics]
    frontiers = [
        (m[f"{split}_own_frontier"], m[f"{split}_everyone_frontier"])
        for m in metrics
        if f"{split}_own_frontier" in m
    ]
    worst = sorted(own)[: max(1, math.ceil(len(own) / 10))]
    return {
        "accuracy_local": _mean(own),
        "accuracy_local_worst": _mean(worst),
        "accuracy_global": _mean([m[f"{split}_everyone"] for m in metrics]),
        "frontier": [
            {
                "prior": prior,
                "accuracy_local": _mean([f[0][i] for f in frontiers]),
                "accuracy_global": _mean([f[1][i] for f in frontiers]),
            }
            for i, prior in enumerate(PRIORS)
        ]
        if frontiers
        else [],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def trainable_parameters(world: World, method: Method, server: Server) -> int:
    """Number of trained parameters of a client's final model: LoRA pairs, heads and gate."""
    config, backbone = world.config, world.backbone
    total = 0
    for stage in {stage.expert: stage for stage in method.stages}.values():
        active = server.active(stage)
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
