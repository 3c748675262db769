"""An export as a client: for `fedms.load`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedms.config import load_config
from fedms.core.errors import ConfigError, FedmsError
from fedms.core.files import read_json
from fedms.core.formatting import excerpt, printable
from fedms.core.paths import is_name
from fedms.federation.identity import ModelIdentity
from fedms.federation.method import Method
from fedms.federation.personal_model import PersonalModel
from fedms.model.arrays import prefixed
from fedms.model.checkpoints import MINILM_HUB_NAME
from fedms.model.evidence import LinearEvidence
from fedms.model.peft import from_peft, read_head, read_tensors
from fedms.runs.backbones import shared_backbone
from fedms.runs.client import Client
from fedms.runs.export.facts import FACTS, FORMAT, GATE_CONFIG, GATE_WEIGHTS, KEYS, LABELS, is_export


class ExportedModel(PersonalModel):
    """A client's parts as an export keeps them: its evidence as linear layers."""

    @property
    def new_evidence(self) -> LinearEvidence | None:
        """From the layers."""
        if "evidence.own.weight" not in self.arrays:
            return None
        return LinearEvidence(self.arrays, self._posterior if "evidence.shift" in self.arrays else None)


def export_at(folder: Path, client: str | None) -> Path | None:
    """The export in this folder, or the client's in it; None where there is none."""
    if is_export(folder):
        return folder
    if client is not None and is_name(client) and is_export(folder / client):
        return folder / client
    return None


def open_export(folder: Path, client: str | None, model: str | Path | None, device: str) -> Client:
    """Read an export, and load its frozen model.

    Raises:
        FedmsError: a file is damaged, it is another client's, or the frozen model is not there or another.
    """
    said = read_json(folder / FACTS)
    try:
        if said["format"] != FORMAT:
            raise FedmsError(f"{folder}: was written by another fedms, in format {said['format']}")
        name, merged, base = str(said["client"]), bool(said["merged"]), said["base"]
        if client not in (None, name):
            raise FedmsError(f"{folder}: is the export of {excerpt(name)}, not of {excerpt(str(client))}")
        sections = {key: said["config"][key] for key in KEYS}
        sections["model"] = {**sections["model"], "name": str(folder) if merged else _place(base, model)}
        config = load_config({**sections, "device": device})
        method = Method.from_dict(said["method"])
        gate = read_json(folder / GATE_CONFIG) if method.predicts == "mixture" else {}
        shared = shared_backbone(config)
        expected = ModelIdentity(**said["identity"]) if said["identity"] else shared.identity
        if change := expected.change(shared.identity):
            where = f"{folder}: model {excerpt(config.model.name)}"
            raise FedmsError(f"{where} is not that of the export: {change}")
        arrays: dict[str, Tensor] = {}
        for expert in said["experts"]:
            whole = read_head(folder) if merged else from_peft(folder / expert, shared.backbone, config.lora)
            arrays |= prefixed(whole, f"{expert}/")
        if gate.get("kind") == "learned" and (folder / GATE_WEIGHTS).exists():
            arrays |= read_tensors(folder / GATE_WEIGHTS)
        if gate.get("kind") == "counts":
            arrays["own.counts"] = torch.tensor([float(each) for each in gate["counts"]])
        scales = [float(each) for each in gate.get("evidence_scales", {}).values()]
        personal = ExportedModel(
            arrays, method, config, bool(gate.get("network_kept")), *([scales] if scales else [])
        )
        classes = tuple(map(str, read_json(folder / LABELS)))
        hub_name = None if base["is_folder"] else str(base["name"])
        prior, boundary, figures = float(said["prior"]), int(said["boundary"]), dict(said["figures"])
    except ConfigError as error:
        raise FedmsError(f"{folder / FACTS}: damaged: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise FedmsError(f"{folder / FACTS}: damaged: not an export's") from None
    opened = Client(name, classes, personal, shared, prior, boundary, hub_name, figures)
    if not opened.fits():
        raise FedmsError(f"{folder}: damaged: its files do not fit each other or their model")
    return opened


def _place(base: Mapping[str, Any], model: str | Path | None) -> str:
    """Where the frozen model is on this machine."""
    if model is not None:
        folder = Path(os.path.expanduser(model)).absolute()  # noqa: PTH111 - Path raises for an unknown user
        if not folder.is_dir():
            raise FedmsError(f"model {printable(str(model))}: there is no such folder")
        return str(folder)
    if base["is_folder"]:
        raise FedmsError(
            f"model {printable(str(base['name']))}: was a folder; name it with --model (model= in Python)"
        )
    return "minilm" if base["name"] == MINILM_HUB_NAME else str(base["name"])
