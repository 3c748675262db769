"""The README of an export: its files, and a program that predicts with them. The tests run the program."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from fedms.config import Config
from fedms.federation.methods import of
from fedms.model.backbone import Backbone
from fedms.model.gate import COUNT_STRENGTH

PAGE = Template("""\
# Client `$client`, exported by fedms

$what The frozen model underneath is $base.

| file | holds |
|---|---|
$files

This program predicts with these files and the frozen model. It needs torch, transformers, peft,
safetensors$pillow. Run it in this folder. $place

```python
$program
```
""")

PROGRAM = Template("""\
import json
import os
import sys

${numpy_import}import torch
from peft import PeftModel
${pil_import}\
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import $classes

BASE = $base
labels = json.load(open("labels.json", encoding="utf-8"))
processor = $processor
model = PeftModel.from_pretrained($loader.from_pretrained(BASE), "$first", adapter_name="$first")
${second}\
model.eval()

$picture
def feature(inputs):
$pooling
    return F.normalize(pooled, dim=1) * pooled.shape[1] ** 0.5


def logits(expert, x):
    head = load_file(f"{expert}/head.safetensors")
    return head["log_scale"].exp() * F.linear(x, head["weight"], head["bias"])


@torch.no_grad()
def probabilities(samples$argument):
${prompted}    inputs = processor(samples, return_tensors="pt"$options)
$predicting


if __name__ == "__main__":
    $samples
    for row in probabilities(samples):
        print(f"{row.max():.3f}  {labels[row.argmax()]}")""")

POOLING = {
    ("text", "mean"): (
        'hidden, real = model(**inputs).last_hidden_state, inputs["attention_mask"][:, :, None]',
        "pooled = (hidden * real).sum(1) / real.sum(1)",
    ),
    ("text", "last"): (
        'hidden, last = model(**inputs).last_hidden_state, inputs["attention_mask"].sum(1) - 1',
        "pooled = hidden[torch.arange(len(hidden)), last]",
    ),
    ("text", "cls"): ("pooled = model(**inputs).last_hidden_state[:, 0]",),
    ("image", "cls"): ("pooled = model(**inputs$resized).last_hidden_state[:, 0]",),
    ("image", "mean"): ("pooled = model(**inputs$resized).last_hidden_state.mean(1)",),
    ("clip", "cls"): ("pooled = model(**inputs$resized).image_embeds",),
    ("clip", "mean"): (
        "tower = model.get_base_model()",
        "hidden = tower.vision_model.post_layernorm(model(**inputs$resized).last_hidden_state)",
        "pooled = tower.visual_projection(hidden.mean(1))",
    ),
}
PICTURE = """
def picture(path):
    image = Image.open(path)
    mode, tags = image.mode, getattr(image, "tag_v2", {})
    turned = ImageOps.exif_transpose(image)
    if mode in ("F", "I") or mode.startswith("I;16"):
        brightest = 1 if mode == "F" else 2 ** tags.get(258, (16,))[0] - 1
        values = np.asarray(turned).astype(np.float64) / brightest
        if brightest > 65535 or not ((values >= 0) & (values <= 1)).all():
            sys.exit(f"{path}: cannot read the image: pixels outside 0 to {min(brightest, 65535):,}")
        grey = np.floor(values * 255 + 0.5)
        turned = Image.fromarray((255 - grey if tags.get(262) == 0 else grey).astype(np.uint8))
    return turned.convert("RGB")

"""
LOG_R = (
    'own_kind = F.linear(u, gate["evidence.own.weight"], gate["evidence.own.bias"])',
    'any_kind = F.linear(u, gate["evidence.everyone.weight"], gate["evidence.everyone.bias"])',
    "log_r = own_kind.logsumexp(1) - any_kind.logsumexp(1)",
)
POSTERIOR_LOG_R = (
    LOG_R[0],
    'by_counts = F.linear(u, gate["evidence.counts.weight"], gate["evidence.counts.bias"])',
    'by_posterior = everyone.log_softmax(1) + gate["evidence.shift"]',
    "log_r = own_kind.logsumexp(1) - by_counts.logsumexp(1) + by_posterior.logsumexp(1)",
)
COUNTS = (
    'counts = torch.tensor(json.load(open("gate.json", encoding="utf-8"))["counts"])',
    f"known = everyone.softmax(1) @ (counts / (counts + {COUNT_STRENGTH}))",
    "local_weight = torch.sigmoid(torch.logit(torch.tensor(prior)) + torch.logit(known, eps=1e-6))[:, None]",
)
DELTA = (
    'a = u + F.linear(F.gelu(F.linear(u, gate["gate.adapter.down"])), gate["gate.adapter.up"])',
    'hidden = F.gelu(F.linear(a, gate["gate.network.hidden.weight"], gate["gate.network.hidden.bias"]))',
    'delta = F.linear(hidden, gate["gate.network.out.weight"], gate["gate.network.out.bias"])[:, 0]',
)


@dataclass(frozen=True)
class Base:
    """The frozen model."""

    name: str
    """On the hub; or the last part of its folder's path."""
    is_folder: bool


def readme(
    client: str,
    config: Config,
    backbone: Backbone,
    base: Base,
    experts: Sequence[str],
    gate: Mapping[str, Any] | None,
) -> str:
    """The page; `gate` is what gate.json says."""
    files = [("labels.json", "the class names, in the order of the heads' rows")]
    for name in experts:
        files.append((f"{name}/adapter_*", f"the {name} expert's LoRA, in PEFT's format"))
        files.append((f"{name}/head.*", f"the {name} expert's head, and how it is applied"))
    if gate:
        files.append(("gate.json", "the prior, what the gate reads, and its formulas"))
    if gate and gate["kind"] == "learned":
        files.append(("gate.safetensors", "the gate's arrays"))
    mixed = "A global expert of the whole federation and this client's own local expert, mixed by a gate."
    prior = ", with this client's label prior in its head's bias" if of(config).label_prior else ""
    return PAGE.substitute(
        client=client,
        what=mixed if gate else f"The {experts[0]} expert, which predicts alone{prior}.",
        base=f"a folder that was called `{base.name}`" if base.is_folder else f"`{base.name}`",
        place=(
            "Set the environment variable `BASE_MODEL` to the frozen model's folder."
            if base.is_folder
            else f"It takes `{base.name}` from the hub, or from the folder that the environment variable "
            "`BASE_MODEL` names."
        ),
        files="\n".join(f"| `{name}` | {what} |" for name, what in files),
        pillow=", pillow" if backbone.kind == "image" else "",
        program=_program(config, backbone, base, experts, gate),
    )


def _program(
    config: Config,
    backbone: Backbone,
    base: Base,
    experts: Sequence[str],
    gate: Mapping[str, Any] | None,
) -> str:
    image, clip = backbone.kind == "image", backbone.family.projection is not None
    size = config.model.image_size
    model: Any = backbone.model
    told = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    resized = ", interpolate_pos_encoding=True" if size and told else ""
    pooling = POOLING["clip" if clip else backbone.kind, backbone.pooling]
    loader = backbone.family.model_class
    processor = "AutoImageProcessor" if image else "AutoTokenizer"
    backend = ', backend="pil"' if image else ""
    if image:
        options = f', size={{"height": {size}, "width": {size}}}, do_center_crop=False' if size else ""
    else:
        options = f", padding=True, truncation=True, max_length={config.model.max_length}"
    return PROGRAM.substitute(
        pil_import="from PIL import Image, ImageOps\n" if image else "",
        numpy_import="import numpy as np\n" if image or (gate and gate["kind"] == "learned") else "",
        picture=PICTURE if image else "",
        classes=", ".join(sorted((loader, processor))),
        base=_base(base),
        processor=f"{processor}.from_pretrained(BASE{backend})",
        loader=loader,
        first=experts[0],
        second="".join(f'model.load_adapter("{name}", adapter_name="{name}")\n' for name in experts[1:]),
        pooling=_indented(line.replace("$resized", resized) for line in pooling),
        argument=f", prior={gate['prior']}" if gate else "",
        options=options,
        prompted=f"    samples = [{backbone.prompt!r} + sample for sample in samples]\n"
        if backbone.prompt
        else "",
        predicting=_indented(
            _mixing(gate) if gate else [f'return logits("{experts[0]}", feature(inputs)).softmax(1)']
        ),
        samples=f"samples = {'[picture(path) for path in sys.argv[1:]]' if image else 'sys.argv[1:]'}",
    )


def _base(base: Base) -> str:
    """Where the program finds the frozen model. The name of a folder must not be looked up on the hub."""
    if base.is_folder:
        refusal = f"set BASE_MODEL to the folder of the frozen model, which was called {base.name}"
        return f'os.environ.get("BASE_MODEL") or sys.exit({json.dumps(refusal)})'
    return f'os.environ.get("BASE_MODEL", {json.dumps(base.name)})'


def _mixing(gate: Mapping[str, Any]) -> list[str]:
    lines = [
        'model.set_adapter("global")',
        "x = feature(inputs)",
        'everyone = logits("global", x)',
        'model.set_adapter("local")',
        'own = logits("local", feature(inputs))',
    ]
    if gate["kind"] == "constant":
        lines.append("local_weight = prior")
    elif gate["kind"] == "counts":
        lines += COUNTS
    else:
        log_r = POSTERIOR_LOG_R if gate["evidence"] == "posterior" else LOG_R
        terms = {"log_r": log_r} if gate["evidence"] != "none" else {}
        terms |= {"delta": DELTA} if gate["network_kept"] else {}
        lines += (
            ["with model.disable_adapter():", "    u = feature(inputs)"]
            if gate["features"] == "backbone"
            else ["u = x"]
        )
        lines += ['gate = load_file("gate.safetensors")', *(line for term in terms.values() for line in term)]
        scales = gate["evidence_scales"]
        lines.append(f"priors, scales = {[*map(float, scales)]}, {[*scales.values()]}")
        lines.append(f"evidence = np.interp(prior, priors, scales) * ({' + '.join(terms)})")
        lines.append("local_weight = torch.sigmoid(torch.logit(torch.tensor(prior)) + evidence)[:, None]")
    if gate["mixture_on"] == "logits":
        return [*lines, "return ((1 - local_weight) * everyone + local_weight * own).softmax(1)"]
    return [*lines, "return (1 - local_weight) * everyone.softmax(1) + local_weight * own.softmax(1)"]


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)
