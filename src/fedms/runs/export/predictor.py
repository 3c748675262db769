"""Predicts with one client's model that fedms exported. It needs torch, transformers and safetensors alone.

python predictor.py "a text" "another text"      # or files of pictures, which need pillow, too

from predictor import Predictor
Predictor("the/export", device="cuda", batch_size=64).predict(["a text"])
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F


class Predictor:
    """One client's experts on their frozen model, and the gate that mixes them.

    Args:
        folder: the export; default: where this file lies.
        base: the frozen model's folder or its name on the hub; default: the environment variable
            `BASE_MODEL`, then the name that the export has.
        device: `cpu`, `cuda` or another that torch knows.
        batch_size: samples that run through the model together.

    Attributes:
        labels: the class names, in the order of the probabilities.

    Raises:
        ValueError: the frozen model was a folder, and nobody says where it is.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        base: str | Path | None = None,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        self.folder = Path(__file__).parent if folder is None else Path(folder)
        self.about: dict[str, Any] = self._read("export.json")
        self.labels: list[str] = self._read("labels.json")
        self.device = torch.device(device)
        self.batch_size = batch_size
        source = self._source(base)
        loader = getattr(transformers, self.about["model_class"])
        self.model = loader.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        self.model.eval().to(self.device)
        self.image = self.about["kind"] == "image"
        self._place = source
        self._expert: str | None = None
        self._heads: dict[str, dict[str, Tensor]] = {}
        for name in self.about["experts"]:
            place = self.folder if self.about["merged"] else self.folder / name
            self._heads[name] = self._tensors(place / "head.safetensors")
            if not self.about["merged"]:
                self._attach(name, place)
        has_gate = (self.folder / "gate.json").exists()
        self.gate: dict[str, Any] | None = self._read("gate.json") if has_gate else None
        tensors = self.folder / "gate.safetensors"
        self._gate = self._tensors(tensors) if tensors.exists() else {}

    @cached_property
    def processor(self) -> Any:
        """The frozen model's tokenizer or image processor."""
        if self.image:
            return transformers.AutoImageProcessor.from_pretrained(
                self._place, backend="pil", trust_remote_code=False
            )
        return transformers.AutoTokenizer.from_pretrained(self._place, trust_remote_code=False)

    def predict(self, samples: Sequence[Any], prior: float | None = None) -> list[tuple[str, float]]:
        """The likeliest class of each sample, and its probability."""
        rows = self.probabilities(samples, prior)
        return [(self.labels[int(row.argmax())], float(row.max())) for row in rows]

    def probabilities(self, samples: Sequence[Any], prior: float | None = None) -> Tensor:
        """The probability of each class, [n, C].

        Args:
            samples: texts; or pictures, as files or as pillow's images.
            prior: how often this client meets its own kind of data, from 0 (the global expert alone) to 1
                (the local one alone); default: as the run had it. Without a gate it has no meaning.
        """
        parts = [torch.empty(0, len(self.labels))]
        with torch.inference_mode():
            for at in range(0, len(samples), self.batch_size):
                inputs = self._inputs(samples[at : at + self.batch_size])
                parts.append(self._probabilities(inputs, prior).cpu())
        return torch.cat(parts)

    def _probabilities(self, inputs: Mapping[str, Tensor], prior: float | None) -> Tensor:
        if self.gate is None:
            name = self.about["experts"][0]
            return self._logits(name, self._feature(name, inputs)).softmax(1)
        x = self._feature("global", inputs)
        everyone = self._logits("global", x)
        own = self._logits("local", self._feature("local", inputs))
        weight = self._local_weight(x, everyone, inputs, self.gate["prior"] if prior is None else prior)
        if self.gate["mixture_on"] == "logits":
            return ((1 - weight) * everyone + weight * own).softmax(1)
        return (1 - weight) * everyone.softmax(1) + weight * own.softmax(1)

    def _local_weight(
        self, x: Tensor, everyone: Tensor, inputs: Mapping[str, Tensor], prior: float
    ) -> Tensor:
        """How much the local expert counts, [n, 1]; `formulas` in gate.json says the same in words."""
        gate, tensors = self.gate or {}, self._gate
        if gate["kind"] == "constant":
            return torch.full((len(x), 1), float(prior), device=x.device)
        odds = torch.logit(torch.tensor(float(prior), device=x.device))
        if gate["kind"] == "counts":
            counts = torch.tensor(gate["counts"], device=x.device)
            known = everyone.softmax(1) @ (counts / (counts + gate["strength"]))
            return torch.sigmoid(odds + torch.logit(known, eps=1e-6))[:, None]
        u = self._feature(None, inputs) if gate["features"] == "backbone" else x
        evidence = torch.zeros(len(x), device=x.device)
        if "evidence.own.weight" in tensors:
            evidence = evidence + self._score("evidence.own", u)
            if "evidence.shift" in tensors:
                known = (everyone.log_softmax(1) + tensors["evidence.shift"]).logsumexp(1)
                evidence = evidence - self._score("evidence.counts", u) + known
            else:
                evidence = evidence - self._score("evidence.everyone", u)
        if gate["network_kept"]:
            a = u + F.linear(F.gelu(F.linear(u, tensors["gate.adapter.down"])), tensors["gate.adapter.up"])
            name = "gate.network"
            hidden = F.gelu(F.linear(a, tensors[f"{name}.hidden.weight"], tensors[f"{name}.hidden.bias"]))
            delta = F.linear(hidden, tensors[f"{name}.out.weight"], tensors[f"{name}.out.bias"])
            evidence = evidence + delta[:, 0]
        return torch.sigmoid(odds + _at(prior, gate["evidence_scales"]) * evidence)[:, None]

    def _score(self, name: str, u: Tensor) -> Tensor:
        layer = self._gate[f"{name}.weight"], self._gate[f"{name}.bias"]
        return F.linear(u, *layer).logsumexp(1)

    def _logits(self, expert: str, x: Tensor) -> Tensor:
        head = self._heads[expert]
        return head["log_scale"].exp() * F.linear(x, head["weight"], head["bias"])

    def _feature(self, expert: str | None, inputs: Mapping[str, Tensor]) -> Tensor:
        """The pooled feature with an expert's adapter, or without any, scaled to length sqrt(d): [n, d]."""
        self._expert = expert
        hidden = self.model(**inputs).last_hidden_state
        projection = self.about["projection"]
        if projection is not None:
            for path in self.about["after"]:
                hidden = self.model.get_submodule(path)(hidden)
        pooling, real = self.about["pooling"], inputs.get("attention_mask")
        pooled: Tensor
        if pooling == "cls":
            pooled = hidden[:, 0]
        elif pooling == "last" and real is not None:
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), real.sum(1) - 1]
        elif pooling == "last":
            pooled = hidden[:, -1]
        elif pooling == "own":
            pooled = self.model.get_submodule(self.about["pooler"])(hidden)
        elif real is None:
            pooled = hidden.mean(1)
        else:
            pooled = (hidden * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
        if projection is not None:
            pooled = self.model.get_submodule(projection)(pooled)
        scaled: Tensor = F.normalize(pooled, dim=1) * pooled.shape[1] ** 0.5
        return scaled

    def _inputs(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """What the model is given."""
        size = self.about["image_size"]
        if self.image:
            options = {"size": {"height": size, "width": size}, "do_center_crop": False} if size else {}
            pictures = [picture(each) if isinstance(each, str | Path) else each for each in samples]
            found = self.processor(pictures, return_tensors="pt", **options)["pixel_values"]
            inputs: dict[str, Any] = {"pixel_values": found.to(self.device)}
            if size and "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters:
                inputs["interpolate_pos_encoding"] = True
            return inputs
        # padded here, at the end: some tokenizers pad at the start, and some have no padding
        rows = [self._tokens(each) for each in samples]
        ids = torch.full((len(rows), max(map(len, rows))), int(self.processor.pad_token_id or 0))
        real = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row)
            real[at, : len(row)] = 1
        return {"input_ids": ids.to(self.device), "attention_mask": real.to(self.device)}

    def _tokens(self, text: str) -> list[int]:
        """Token ids. Of a text that is too long the end is cut, and what follows every text stays."""
        longest = self.about["max_length"]

        def encoded(characters: int, **options: Any) -> list[int]:
            whole = self.about["before"] + text[:characters] + self.about["after_text"]
            ids: list[int] = self.processor(whole, **options)["input_ids"]
            return ids

        if not self.about["after_text"]:
            return encoded(len(text), truncation=True, max_length=longest)
        least, most = 0, len(text)
        while least < most:
            middle = most if least == 0 and most == len(text) else (least + most + 1) // 2
            least, most = (middle, most) if len(encoded(middle)) <= longest else (least, middle - 1)
        return encoded(least, truncation=True, max_length=longest)

    def _attach(self, expert: str, place: Path) -> None:
        """Have the frozen layers add the pairs of this expert while it is in use."""
        config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = self._tensors(place / "adapter_model.safetensors")
        for path in config["target_modules"]:
            A, B = (tensors[f"base_model.model.{path}.lora_{each}.weight"] for each in "AB")
            scale = config["alpha_pattern"].get(path, config["lora_alpha"]) / len(A)
            self.model.get_submodule(path).register_forward_hook(self._added(expert, A, B, scale))

    def _added(self, expert: str, A: Tensor, B: Tensor, scale: float) -> Callable[..., Tensor | None]:
        def hook(layer: torch.nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            if self._expert != expert:
                return None
            return torch.add(out, F.linear(F.linear(given[0], A), B), alpha=scale)

        return hook

    def _source(self, base: str | Path | None) -> str:
        known = self.about["base"]
        if self.about["merged"]:
            return str(self.folder)
        if named := base or os.environ.get("BASE_MODEL"):
            return str(named)
        if known["is_folder"]:
            raise ValueError(
                "name the frozen model's folder, by `base` or the environment variable BASE_MODEL; "
                f"it was called {known['name']}"
            )
        return str(known["name"])

    def _read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def _tensors(self, path: Path) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in load_file(path).items()}


def _at(prior: float, scales: Mapping[str, float]) -> float:
    """The scale at this prior, on straight lines between the priors that have one."""
    known = sorted((float(at), scale) for at, scale in scales.items())
    if prior <= known[0][0]:
        return known[0][1]
    for (low, first), (high, second) in itertools.pairwise(known):
        if prior <= high:
            return first + (second - first) * (prior - low) / (high - low)
    return known[-1][1]


def picture(path: str | Path) -> Any:
    """A picture in 8-bit RGB, turned as its camera was held.

    Raises:
        ValueError: its pixels have no fixed range.
    """
    import numpy as np
    from PIL import Image, ImageOps

    image = Image.open(path)
    mode, tags = image.mode, getattr(image, "tag_v2", {})
    turned = ImageOps.exif_transpose(image)
    if mode in ("F", "I") or mode.startswith("I;16"):
        brightest = 1 if mode == "F" else 2 ** tags.get(258, (16,))[0] - 1
        values = np.asarray(turned).astype(np.float64) / brightest
        if brightest > 65535 or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{path}: cannot read the image: pixels outside 0 to {min(brightest, 65535):,}")
        grey = np.floor(values * 255 + 0.5)
        turned = Image.fromarray((255 - grey if tags.get(262) == 0 else grey).astype(np.uint8))
    return turned.convert("RGB")


def main() -> None:
    """Print the likeliest class of each sample."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("samples", nargs="*", help="texts, or files of pictures")
    parser.add_argument("--base", help="the frozen model's folder, or its name on the hub")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--prior", type=float, help="probability of own data, from 0 to 1")
    given = parser.parse_args()
    try:
        predictor = Predictor(base=given.base, device=given.device, batch_size=given.batch_size)
        for label, probability in predictor.predict(given.samples, given.prior):
            print(f"{probability:.3f}  {label}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
