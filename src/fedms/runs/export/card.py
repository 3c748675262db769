"""The README of an export: a model card, with what the files are and what they give away."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from fedms.config import Config
from fedms.federation.method import Method

PAGE = Template("""\
---
${base_line}library_name: $library
pipeline_tag: $task
tags: [fedms, federated-learning, lora]
---

# Client `$client`, exported by fedms

$what The frozen model underneath is $base.
$note
| file | holds |
|---|---|
$files

## Use

```python
from predictor import Predictor  # predictor.py in this folder, which can be copied anywhere

predictor = Predictor("$folder"$argument)
predictor.predict([$sample])
```

It needs torch, transformers, safetensors$pillow. `python predictor.py $sample_word ...` does the same. $place
With fedms, `fedms.load` opens this folder as it opens a run: `predict`, `predict_proba`, `explain`.

## How it was trained

Method `$method`: $summary$paper. $rounds. LoRA of rank $rank and alpha $alpha; $precision.

## Figures of this client

$figures

They are of one client's data and say nothing of other people's.

## What the files give away

- The bias of a head follows the label shares of whose data trained it: the local expert's, and with a label
  prior the global one's, show which classes this client holds, and how often.
- Losses of an expert tell whether a text was among its training data better than chance does: .75 as the area
  under the curve, measured on texts for experts of fedms.
$gate_line- Whoever holds these files holds that. Give them to nobody who may not know it.
""")
GATE_LINES = {
    "learned": "- gate.safetensors holds this client's label shares and, in `evidence.own`, means of its "
    "features by class.\n  The mean of one to three samples names them.\n",
    "counts": "- gate.json holds how many training samples of each class this client has.\n",
}


def card(
    client: str,
    config: Config,
    method: Method,
    facts: Mapping[str, Any],
    gate: Mapping[str, Any] | None,
    figures: Mapping[str, Any],
    note: str | None,
) -> str:
    """The page.

    Args:
        facts: the content of export.json.
        gate: that of gate.json.
        figures: the client's accuracies, as result.json has them.
        note: why a merged model has no classification head.
    """
    base, merged, image = facts["base"], facts["merged"], facts["kind"] == "image"
    experts, name = facts["experts"], base["name"]
    alone = ", with this client's label prior in its head's bias" if method.label_prior else ""
    what = f"The {experts[0]} expert, which predicts alone{alone}."
    if gate:
        what = "A global expert of the whole federation and this client's own local expert, mixed by a gate."
    if merged:
        what = f"The {experts[0]} expert{alone}, merged into the model: a plain transformers folder."
    place = "" if merged else f"It takes `{name}` from the hub, or from the folder that `base=` names."
    if base["is_folder"] and not merged:
        place = "`base=`, or the environment variable `BASE_MODEL`, names the frozen model's folder."
    return PAGE.substitute(
        base_line="" if base["is_folder"] else f"base_model: {name}\n",
        library="transformers" if merged else "peft",
        task="image-classification" if image else "text-classification",
        client=client,
        what=what,
        base=f"a folder that was called `{name}`" if base["is_folder"] else f"`{name}`",
        note=f"\nNo `pipeline`: {note}.\n" if note else "",
        files="\n".join(f"| `{file}` | {holds} |" for file, holds in _files(experts, merged, gate)),
        folder=".",
        argument=', base="FOLDER"' if base["is_folder"] and not merged else "",
        sample='"a.png"' if image else '"a text"',
        sample_word="a.png" if image else '"a text"',
        pillow=", pillow" if image else "",
        place=place,
        method=method.name,
        summary=method.summary,
        paper=f" ({method.paper})" if method.paper else "",
        rounds=_rounds(config, method),
        rank=config.lora.rank,
        alpha=f"{config.lora.alpha:g}",
        precision=f"the frozen model in {config.precision}",
        figures=_figures(figures),
        gate_line=GATE_LINES.get(gate["kind"], "") if gate else "",
    )


def _files(experts: Sequence[str], merged: bool, gate: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    found = [("labels.json", "the class names, in the order of the heads' rows")]
    for name in experts:
        if merged:
            found.append(("config.json, *.safetensors", "the model, and its tokenizer or image processor"))
            found.append(("head.*", f"the {name} expert's head, and how it is applied"))
        else:
            found.append((f"{name}/adapter_*", f"the {name} expert's LoRA, in PEFT's format"))
            found.append((f"{name}/head.*", f"the {name} expert's head, and how it is applied"))
    if gate:
        found.append(("gate.json", "the prior, what the gate reads, and its formulas"))
    if gate and gate["kind"] == "learned":
        found.append(("gate.safetensors", "the gate's arrays"))
    found.append(("export.json", "what predictor.py and `fedms.load` read"))
    return [*found, ("predictor.py", "predicts with these files, without fedms")]


def _rounds(config: Config, method: Method) -> str:
    stages = {stage.expert for stage in method.stages}
    counts = {"global": config.federation.rounds_global, "local": config.federation.rounds_local}
    each = [f"{counts[name]} {name} rounds" for name in ("global", "local") if name in stages]
    return f"{' and '.join(each) or 'No rounds'}, seed {config.seed}"


def _figures(figures: Mapping[str, Any]) -> str:
    names = {
        "samples": "training samples",
        "accuracy_local": "accuracy on its own test data",
        "accuracy_global": "accuracy on everyone's test data",
        "gate_global_share": "mean weight of the global expert on its own test data",
    }
    rows = [
        f"| {text} | {json.dumps(round(figures[key], 4))} |"
        for key, text in names.items()
        if figures.get(key) is not None
    ]
    return "\n".join(["| | |", "|---|---:|", *rows]) if rows else "Not known."
