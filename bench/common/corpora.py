"""Twelve clients of three corpora, and a small Llama that has read none of their texts.

Four clients hold home-assistant requests (the embedded corpus, a domain each), four hold questions to a
bank (BANKING77, a quarter of its intents each), and four hold the speeches of a role of Shakespeare's. The
Llama is pretrained on the speeches of all other roles.
"""

from __future__ import annotations

import csv
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

DOMAINS = ("calendar", "kitchen", "lights", "music")
ROLES = ("GLOUCESTER", "MENENIUS", "ROMEO", "LEONTES")
QUARTERS = 4
SPEECH = re.compile(r"^([A-Z][A-Za-z ]{2,30}):\n((?:.+\n?)+)", re.MULTILINE)
WORDS = 1024
STEPS, BATCH, WINDOW = 500, 8, 96
LLAMA: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""0.54 M parameters."""


def speeches(data: Path) -> list[tuple[str, str, str]]:
    """(role, the speech before, speech) of the whole file; the speech before is empty at the start."""
    text = (data / "shakespeare" / "input.txt").read_text(encoding="utf-8")
    found = [(role.strip(), speech.strip()) for role, speech in SPEECH.findall(text)]
    before = ["", *(speech for _, speech in found)]
    return [(role, said, speech) for (role, speech), said in zip(found, before, strict=False)]


def texts(data: Path, rows: int) -> list[tuple[str, str]]:
    """(client, text), at most `rows` texts of each client, drawn always alike."""
    held: dict[str, list[str]] = defaultdict(list)
    corpus = resources.files("fedms.data") / "corpus"
    for domain in DOMAINS:
        with (corpus / f"{domain}.csv").open(encoding="utf-8") as file:
            held[domain] = [row["text"] for row in csv.DictReader(file)]
    with (data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        asked = list(csv.DictReader(file))
    intents = sorted({row["category"] for row in asked})
    for row in asked:
        quarter = intents.index(row["category"]) * QUARTERS // len(intents)
        held[f"bank {quarter + 1}"].append(" ".join(row["text"].split()))
    for role, _, speech in speeches(data):
        if role in ROLES:
            held[role.lower()].append(speech)
    draw = random.Random(0)
    chosen = []
    for client, own in held.items():
        own = list(dict.fromkeys(own))
        chosen += [(client, text) for text in draw.sample(own, min(rows, len(own)))]
    return chosen


def write_texts(rows: Sequence[tuple[str, str]], path: Path) -> None:
    """The file that `examples/text.yaml` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("client", "text"))
        writer.writerows(rows)


def pretrained_llama(passages: Sequence[str], folder: Path, steps: int = STEPS) -> float:
    """Train a small Llama and its tokenizer on these passages and save both; its loss at the end, in nats.

    The loss is the mean over the last tenth of the steps.
    """
    import transformers

    torch.manual_seed(0)
    tokenizer = _tokenizer(passages)
    end = tokenizer.eos_token_id
    stream = torch.tensor([token for passage in passages for token in [*tokenizer.encode(passage), end]])
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1, betas=(0.9, 0.95))
    losses: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * max(0.05, 1 - step / steps)
        starts = torch.randint(len(stream) - WINDOW, (BATCH,))
        tokens = torch.stack([stream[start : start + WINDOW] for start in starts.tolist()])
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 99:
            print(f"pretraining {step + 1}/{steps}  loss {losses[-1]:.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(losses[-steps // 10 :]) / len(losses[-steps // 10 :])


def _tokenizer(passages: Sequence[str]) -> Any:
    """Byte pairs of these passages."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(passages, trainer)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
