"""The benches of language models: who holds what, a Llama from nothing, and the marks."""

from __future__ import annotations

import csv
import importlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten speeches of five roles, and four intents of a bank."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "shakespeare").mkdir()
    roles = ("GLOUCESTER", "MENENIUS", "ROMEO", "LEONTES", "First Citizen")
    lines = [
        f"{role}:\nI say {number} words,\nmy lord {role.title()}.\n" for number in range(10) for role in roles
    ]
    (folder / "shakespeare" / "input.txt").write_text("\n".join(lines))
    (folder / "banking77").mkdir()
    with (folder / "banking77" / "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "category"))
        rows.writerows((f"my  card\n{number} {intent}", intent) for intent in "abcd" for number in range(9))
    return folder


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module


def test_twelve_clients_of_three_corpora_get_the_same_texts_each_time(bench: Any, data: Path) -> None:
    corpora = bench("common.corpora")
    found = corpora.texts(data, 8)
    assert found == corpora.texts(data, 8)
    assert Counter(client for client, _ in found) == dict.fromkeys(
        [*corpora.DOMAINS, *(f"bank {number}" for number in (1, 2, 3, 4)), *map(str.lower, corpora.ROLES)], 8
    )
    assert dict(found)["bank 3"].startswith("my card ") and dict(found)["bank 3"].endswith(" c")
    told = corpora.speeches(data)
    assert told[1][0] == "MENENIUS" and told[1][1] == told[0][2] == "I say 0 words,\nmy lord Gloucester."


def test_a_small_llama_is_saved_as_a_folder_that_can_be_loaded(
    bench: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    corpora = bench("common.corpora")
    monkeypatch.setattr(corpora, "WINDOW", 8)
    monkeypatch.setitem(corpora.LLAMA, "hidden_size", 12)
    monkeypatch.setitem(corpora.LLAMA, "num_hidden_layers", 2)
    loss = corpora.pretrained_llama([speech for _, _, speech in corpora.speeches(data)], tmp_path, steps=10)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert 0 < loss < 8 and len(tokenizer) <= model.config.vocab_size
    assert tokenizer.decode(tokenizer.encode("my lord")) == "my lord" and tokenizer.eos_token_id == 2


def point(prior: float, own: float, everyone: float) -> dict[str, float]:
    return {"prior": prior, "nll_local": own, "nll_global": everyone}


@pytest.mark.parametrize(
    ("at", "kept"),
    [
        ((2.0, 2.9), [True, True, True]),
        ((2.5, 2.9), [False, True, False]),
        ((2.0, 3.1), [True, False, False]),
    ],
)
def test_the_marks_are_judged_on_both_axes(bench: Any, at: tuple[float, float], kept: list[bool]) -> None:
    bayes = [point(0, 3, 3), point(0.8, *at), point(1, 2, 4)]
    constant = [point(0, 3, 3), point(0.8, 1.99, 3.05), point(0.9, 2.4, 2.8)]
    rows = [
        SimpleNamespace(
            name=name,
            record={"frontier": curve},
            runs=[SimpleNamespace(result={"frontier": curve, "perplexity_base": 50.0})],
        )
        for name, curve in (("fedms", bayes), ("mixture-constant", constant))
    ]
    text = bench("text")
    said = text.verdict(SimpleNamespace(rows=rows)).splitlines()
    assert "50.0" in said[0] and ["missed" not in line for line in said[1:]] == kept
    assert text.along_the_weight(SimpleNamespace(rows=rows)).count("\n") == 5
