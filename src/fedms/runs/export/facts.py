"""export.json: what `fedms.load` and predictor.py need to know of an export beside its arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedms.federation.identity import ModelIdentity
from fedms.federation.personal_model import PersonalModel
from fedms.model.backbone import Backbone

FACTS, LABELS = "export.json", "labels.json"
GATE_CONFIG, GATE_WEIGHTS = "gate.json", "gate.safetensors"
FORMAT = 1
KEYS: dict[str, Any] = {
    "model": True,
    "lora": {"rank", "alpha", "targets"},
    "gate": True,
    "mixture": True,
    "precision": True,
    "seed": True,
    "federation": {"rounds_global", "rounds_local"},
    "data": {"template"},
}
"""What the config says of how a client predicts, and of how it was trained."""


def facts(
    personal: PersonalModel,
    backbone: Backbone,
    identity: ModelIdentity,
    base: Mapping[str, Any],
    experts: Sequence[str],
    merged: str | None,
) -> dict[str, Any]:
    """The content of export.json but for the client's own facts. It names no place of this machine.

    Args:
        base: name of the frozen model, and whether that was a folder.
        experts: those that the export holds.
        merged: the expert that is merged into the model, if one is.
    """
    config, family, method = personal.config, backbone.family, personal.method
    said = config.model_dump(mode="json", include=KEYS)
    said["model"] |= {"name": base["name"], "adapter": None}
    method = replace(method, label_prior=False)  # the head's bias holds it
    if merged is not None:
        method = replace(method, predicts=merged, gate=None)
    return {
        "format": FORMAT,
        "experts": list(experts),
        "merged": merged is not None,
        "base": dict(base),
        "identity": None if merged else asdict(identity),
        "kind": backbone.kind,
        "model_class": family.model_class,
        "pooling": backbone.pooling,
        "pooler": family.pooler,
        "after": list(family.after),
        "projection": family.projection,
        "before": backbone.prompt + config.data.around[0],
        "after_text": config.data.around[1],
        "max_length": min(config.model.max_length, backbone.positions or config.model.max_length),
        "image_size": config.model.image_size,
        "method": method.to_dict(),
        "config": said,
    }


def is_export(folder: Path) -> bool:
    """Whether this folder holds an export."""
    return (folder / FACTS).is_file()
