"""One client's model for use without fedms: PEFT adapters with their heads, the gate, and a page that says how."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from fedms.errors import FedmsError
from fedms.export_readme import readme
from fedms.federation.personal import Personal
from fedms.model.backbone import locate
from fedms.model.expert import Expert
from fedms.model.gate import ADAPTER, NETWORK
from fedms.model.peft import save_plain, write_peft
from fedms.model.statistics import Discriminant
from fedms.predict import Client

GATE_WEIGHTS, GATE_CONFIG, LABELS, README = "gate.safetensors", "gate.json", "labels.json", "README.md"
MIXTURE_FORMULAS = {
    "probabilities": "probabilities = global_weight softmax(global logits) + local_weight softmax(local logits)",
    "logits": "probabilities = softmax(global_weight global logits + local_weight local logits)",
}
U_FORMULAS = {
    "global": "u = the pooled feature of the model with the global adapter, scaled to length sqrt(d)",
    "backbone": "u = the pooled feature of the model without any adapter, scaled to length sqrt(d)",
}
WEIGHT_FORMULA = "local_weight = sigmoid(log(prior / (1 - prior)) + evidence_scale (log_r(u) + delta(u))), global_weight = 1 - local_weight"
LOG_R_FORMULA = (
    "log_r(u) = logsumexp(evidence.own.weight u + evidence.own.bias) - logsumexp(evidence.everyone.weight u + evidence.everyone.bias)"
)
DELTA_FORMULA = (
    "delta(u) = gate.network.out.weight gelu(gate.network.hidden.weight a + gate.network.hidden.bias) + gate.network.out.bias, "
    "a = u + gate.adapter.up gelu(gate.adapter.down u)"
)


def export(client: Client, to: Path) -> list[Path]:
    """Write the client's model into a new folder, whole or not at all; return its files.

    Raises:
        FedmsError: something is there already, it cannot be written, or the method trains no expert.
    """
    if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
        raise FedmsError(f"{to}: already there and not empty; name another folder with --to")
    if not _experts(client.personal):
        raise FedmsError(f"method {client.personal.method.name} trains no expert, so there is nothing to export")
    to.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}."))
    try:
        inside = made / "export"  # with the permissions of an ordinary folder, which that of mkdtemp has not
        inside.mkdir()
        _write(client, inside)
        inside.replace(to)  # onto an empty folder this works, too
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return sorted(path for path in to.rglob("*") if path.is_file())


def _experts(personal: Personal) -> dict[str, Expert]:
    """The experts that predict."""
    wanted = {"mixture": ("global", "local"), "global": ("global",), "local": ("local",)}.get(personal.method.predicts, ())
    found = {"global": personal.global_expert, "local": personal.local_expert}
    return {name: expert for name in wanted if (expert := found[name]) is not None}


def _write(client: Client, folder: Path) -> None:
    personal, labels = client.personal, list(client.classes)
    experts = _experts(personal)
    source = locate(personal.config.model.name)
    base_model = str(Path(source).resolve()) if Path(source).is_dir() else source
    for name, expert in experts.items():
        write_peft(folder / name, expert.arrays, client.backbone, personal.config.lora, base_model, labels)
    gate = _gate(client) if personal.method.predicts == "mixture" else None
    if gate:
        described, tensors = gate
        if tensors:
            save_plain(tensors, folder / GATE_WEIGHTS)
        _write_json(folder / GATE_CONFIG, described)
    _write_json(folder / LABELS, labels)
    page = readme(client.name, personal.config, client.backbone, base_model, list(experts), gate[0] if gate else None)
    (folder / README).write_text(page, encoding="utf-8")


def _gate(client: Client) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What gate.json says, and the gate's tensors: the evidence as two linear layers, and the network where it is kept."""
    personal, config = client.personal, client.personal.config
    described = {"client": client.name, "kind": personal.method.gate, "prior": client.prior, "mixture_on": config.mixture.on}
    formulas = {"mixture": MIXTURE_FORMULAS[config.mixture.on]}
    if personal.method.gate == "constant":
        return described | {"formulas": formulas | {"local_weight": "local_weight = prior"}}, {}
    evidence, kept = personal.evidence, personal.network_kept
    tensors: dict[str, Tensor] = {}
    if evidence:
        tensors |= _linear("evidence.own", evidence.everyone, evidence.means, evidence.prior)
        tensors |= _linear("evidence.everyone", evidence.everyone, evidence.everyone.means, evidence.everyone.prior)
    if kept:
        tensors |= {name: personal.arrays[name] for name in (*ADAPTER, *NETWORK)}
    formulas |= {
        "local_weight": WEIGHT_FORMULA,
        "u": U_FORMULAS[config.gate.features],
        "log_r": LOG_R_FORMULA if evidence else "log_r(u) = 0",
        "delta": DELTA_FORMULA if kept else "delta(u) = 0",
    }
    return described | {
        "features": config.gate.features,
        "evidence": config.gate.evidence if evidence else "none",
        "evidence_scale": personal.evidence_scale,
        "network_kept": kept,
        "formulas": formulas,
    }, tensors


def _linear(name: str, everyone: Discriminant, means: Tensor, prior: Tensor) -> dict[str, Tensor]:
    """The discriminant's scores with these means, and the log of a label prior, as one linear layer."""
    projected = means @ everyone.precision / everyone.temperature
    return {f"{name}.weight": projected, f"{name}.bias": prior.log() - 0.5 * (projected * means).sum(1)}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
