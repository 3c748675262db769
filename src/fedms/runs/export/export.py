"""One client's model for use without fedms: PEFT adapters with heads and gate, or one merged model."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedms.core.errors import ConfigError, FedmsError
from fedms.core.files import make_folder, unmake
from fedms.federation.personal_model import PersonalModel
from fedms.federation.prediction import PRIORS, ExpertName, scale_at
from fedms.model.arrays import Arrays
from fedms.model.discriminant import label_shift
from fedms.model.evidence import Evidence, LinearEvidence
from fedms.model.expert import Expert
from fedms.model.gate import ADAPTER, COUNT_STRENGTH, NETWORK
from fedms.runs.client import Client
from fedms.runs.export import predictor
from fedms.runs.export.card import card
from fedms.runs.export.facts import FACTS, GATE_CONFIG, GATE_WEIGHTS, LABELS, facts
from fedms.runs.export.merged import write_merged
from fedms.runs.export.peft import save_plain, write_head, write_peft
from fedms.training.ambient import own_torch_state

README = "README.md"
MIXTURE_FORMULAS = {
    "probabilities": (
        "probabilities = global_weight softmax(global logits) + local_weight softmax(local logits)"
    ),
    "logits": "probabilities = softmax(global_weight global logits + local_weight local logits)",
}
U_FORMULAS = {
    "global": "u = the pooled feature of the model with the global adapter, scaled to length sqrt(d)",
    "backbone": "u = the pooled feature of the model without any adapter, scaled to length sqrt(d)",
}
WEIGHT_FORMULA = (
    "local_weight = sigmoid(log(prior / (1 - prior)) + evidence_scale (log_r(u) + delta(u))), "
    "with evidence_scale interpolated between evidence_scales at another prior; "
    "global_weight = 1 - local_weight"
)
LOG_R_FORMULA = (
    "log_r(u) = logsumexp(evidence.own.weight u + evidence.own.bias) "
    "- logsumexp(evidence.everyone.weight u + evidence.everyone.bias)"
)
POSTERIOR_LOG_R_FORMULA = (
    "log_r(u) = logsumexp(evidence.own.weight u + evidence.own.bias) "
    "- logsumexp(evidence.counts.weight u + evidence.counts.bias) "
    "+ logsumexp(log softmax(global logits) + evidence.shift)"
)
COUNT_FORMULA = (
    "local_weight = sigmoid(log(prior / (1 - prior)) "
    f"+ logit(sum_c softmax(global logits)_c n_c / (n_c + {COUNT_STRENGTH:g}))), "
    "n = counts, global_weight = 1 - local_weight"
)
DELTA_FORMULA = (
    "delta(u) = gate.network.out.weight gelu(gate.network.hidden.weight a + gate.network.hidden.bias) "
    "+ gate.network.out.bias, a = u + gate.adapter.up gelu(gate.adapter.down u)"
)


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    files: list[Path]
    note: str | None
    """Why a merged model has no classification head of transformers"""


@own_torch_state()
def export_client(client: Client, to: Path, merged: ExpertName | None = None) -> Exported:
    """Write the client's model into a new folder, whole or not at all.

    Args:
        merged: the expert to merge into the frozen model; default: both experts as adapters.

    Raises:
        ConfigError: the method does not predict with the expert to merge.
        FedmsError: the folder is not empty or cannot be written, or the method's experts are no adapters.
    """
    check_empty(to)
    if client.personal.config.task == "text":
        raise FedmsError("task: text: its clients cannot be exported yet; allowed: classification")
    if why := _unwritable(client.personal, merged is not None):
        raise FedmsError(
            f"method {client.personal.method.name} {why}, so there is nothing that PEFT could load"
        )
    there = _experts(client.personal)
    if merged is not None and merged not in there:
        raise ConfigError(
            f"--merged: method {client.personal.method.name} does not predict with a {merged} expert; "
            f"allowed: {', '.join(there)}"
        )
    made = make_folder(to)
    try:
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=".export.") as draft:
            inside = Path(draft) / "export"  # the draft itself can be read by its owner alone
            inside.mkdir()
            note = _write(client, inside, merged)
            inside.replace(to)
    except BaseException:
        unmake(made)
        raise
    return Exported(sorted(path for path in to.rglob("*") if path.is_file()), note)


def check_empty(to: Path) -> None:
    """Raise FedmsError if there is anything at this place but an empty folder."""
    if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
        raise FedmsError(f"{to}: already there and not empty; name another folder with --to")


def _unwritable(personal: PersonalModel, merged: bool) -> str | None:
    """Why the experts cannot be PEFT adapters with a head each, or be merged; None if they can."""
    if personal.method.predicts == "blend":
        return "weighs two experts' pairs against each other within every layer"
    found = _experts(personal)
    if not found:
        return "trains no expert"
    names = {name.partition(".")[0] for expert in found.values() for name in expert.arrays}
    reasons = {
        "beside": "weighs other clients' pairs against its own within every layer",
        "attention": "puts an attention before the head",
        "prompt": "puts soft prompts before every input",
    }
    if more := names & reasons.keys():
        return reasons[more.pop()]
    return None if "block" in names or merged else "trains no LoRA pair"


def _experts(personal: PersonalModel) -> dict[ExpertName, Expert]:
    """The experts that predict."""
    every: dict[str, tuple[ExpertName, ...]] = {
        "mixture": ("global", "local"),
        "global": ("global",),
        "local": ("local",),
    }
    wanted = every.get(personal.method.predicts, ())
    found = {"global": personal.global_expert, "local": personal.local_expert}
    return {name: expert for name in wanted if (expert := found[name]) is not None}


def _head_with_prior(client: Client, arrays: Arrays) -> Arrays:
    """The expert's arrays; the bias holds the client's label prior if the method adds that to the logits."""
    personal = client.personal
    if not personal.method.label_prior:
        return arrays
    shift = label_shift(personal.arrays["own.counts"].float(), personal.everyone_prior(), client.prior)
    return arrays | {"head.bias": arrays["head.bias"] + shift / arrays["head.log_scale"].exp()}


def _write(client: Client, folder: Path, merged: ExpertName | None) -> str | None:
    """Write the files; return why a merged model has no classification head."""
    personal, labels, backbone = client.personal, list(client.classes), client.backbone
    place = os.path.abspath(personal.config.model.name)  # noqa: PTH100 - a link keeps its name
    called = client.hub_name or Path(place).name
    base = {"name": called, "is_folder": client.hub_name is None}
    experts = {
        name: _head_with_prior(client, expert.arrays)
        for name, expert in _experts(personal).items()
        if merged in (None, name)
    }
    gate, note = None, None
    if merged is not None:
        note = write_merged(folder, experts[merged], backbone, personal.config, labels)
        write_head(folder, experts[merged], backbone, labels)
    else:
        for name, arrays in experts.items():
            weights = client.identity.weights if personal.config.precision == "float32" else None
            write_peft(folder / name, arrays, backbone, personal.config.lora, called, labels, weights)
        if personal.method.predicts == "mixture":
            gate, tensors = _gate(client)
            if tensors:
                save_plain(tensors, folder / GATE_WEIGHTS)
            _write_json(folder / GATE_CONFIG, gate)
    _write_json(folder / LABELS, labels)
    known = {
        "client": client.name,
        "prior": client.prior,
        "boundary": backbone.depth if merged else client.boundary,
        "figures": dict(client.figures),
        **facts(personal, backbone, client.identity, base, [*experts], merged),
    }
    _write_json(folder / FACTS, known)
    shutil.copyfile(predictor.__file__, folder / "predictor.py")
    page = card(client.name, personal.config, personal.method, known, gate, client.figures, note)
    (folder / README).write_text(page, encoding="utf-8")
    return note


def _gate(client: Client) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of gate.json, and the tensors: the evidence as two linear layers, and the network."""
    personal, config = client.personal, client.personal.config
    described = {
        "client": client.name,
        "kind": personal.method.gate,
        "prior": client.prior,
        "mixture_on": config.mixture.on,
    }
    formulas = {"mixture": MIXTURE_FORMULAS[config.mixture.on]}
    if personal.method.gate == "constant":
        return described | {"formulas": formulas | {"local_weight": "local_weight = prior"}}, {}
    if personal.method.gate == "counts":
        counts = personal.arrays["own.counts"].tolist()
        known = {"counts": counts, "strength": COUNT_STRENGTH}
        return described | known | {"formulas": formulas | {"local_weight": COUNT_FORMULA}}, {}
    evidence, kept = personal.new_evidence, personal.network_kept
    tensors: dict[str, Tensor] = {}
    if evidence:
        tensors |= evidence.layers()
    if kept:
        tensors |= {name: personal.arrays[name] for name in (*ADAPTER, *NETWORK)}
    formulas |= {
        "local_weight": WEIGHT_FORMULA,
        "u": U_FORMULAS[config.gate.features],
        "log_r": _log_r_formula(evidence),
        "delta": DELTA_FORMULA if kept else "delta(u) = 0",
    }
    return described | {
        "features": config.gate.features,
        "evidence": config.gate.evidence if evidence else "none",
        "evidence_scale": scale_at(personal.evidence_scales, client.prior),
        "evidence_scales": dict(zip(map(str, PRIORS[1:-1]), personal.evidence_scales, strict=True)),
        "network_kept": kept,
        "formulas": formulas,
    }, tensors


def _log_r_formula(evidence: Evidence | LinearEvidence | None) -> str:
    if evidence is None:
        return "log_r(u) = 0"
    return POSTERIOR_LOG_R_FORMULA if evidence.posterior else LOG_R_FORMULA


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
