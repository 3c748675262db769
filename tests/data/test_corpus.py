"""The embedded corpus keeps what its README promises: size, domains, no repeats, no template expansion."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import pytest

CORPUS = Path(str(files("fedms"))) / "data" / "corpus"
DOMAINS = sorted(entry.name.removesuffix(".csv") for entry in CORPUS.iterdir() if entry.name.endswith(".csv"))


def read(domain: str) -> list[dict[str, str]]:
    with (CORPUS / f"{domain}.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        assert reader.fieldnames == ["text", "intent"]
        return list(reader)


ROWS = [(domain, row) for domain in DOMAINS for row in read(domain)]
TEXTS: dict[str, list[str]] = defaultdict(list)
for _, _row in ROWS:
    TEXTS[_row["intent"]].append(_row["text"])


def normal(text: str) -> str:
    """The text without case, punctuation and spare spaces."""
    return " ".join(re.sub(r"[^\w\s]", "", text.casefold()).split())


def near_share(texts: list[str]) -> float:
    """Share of pairs whose token sets differ by at most one token: one exchanged, added or left out."""
    tokens = [set(normal(text).split()) for text in texts]
    pairs = list(combinations(tokens, 2))
    return sum(max(len(a - b), len(b - a)) <= 1 for a, b in pairs) / len(pairs)


def prefix_share(texts: list[str]) -> float:
    """Share of the texts that begin with the most frequent first three words."""
    prefixes = Counter(" ".join(normal(text).split()[:3]) for text in texts)
    return max(prefixes.values()) / len(texts)


def test_size() -> None:
    assert len(DOMAINS) >= 8
    assert len(TEXTS) >= 40


def test_every_row_is_complete() -> None:
    # DictReader marks a missing field with None and a spare one with the key None
    assert all(set(row) == {"text", "intent"} and row["text"] and row["intent"] for _, row in ROWS)


def test_an_intent_belongs_to_one_domain() -> None:
    homes = defaultdict(set)
    for domain, row in ROWS:
        homes[row["intent"]].add(domain)
    assert {intent: sorted(found) for intent, found in homes.items() if len(found) > 1} == {}


def test_nothing_twice_in_the_whole_corpus() -> None:
    counts = Counter(normal(row["text"]) for _, row in ROWS)
    assert [text for text, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("intent", sorted(TEXTS))
def test_enough_different_utterances(intent: str) -> None:
    assert len({normal(text) for text in TEXTS[intent]}) >= 40


@pytest.mark.parametrize("intent", sorted(TEXTS))
def test_no_template_expansion(intent: str) -> None:
    assert near_share(TEXTS[intent]) < 0.02
    assert prefix_share(TEXTS[intent]) <= 0.15


def test_the_measures_see_a_template() -> None:
    slots = ["red", "green", "blue", "white", "amber", "violet", "pink", "teal"]
    assert near_share([f"make the lamp {slot}" for slot in slots]) == 1
    assert prefix_share([f"make the lamp {slot}" for slot in slots]) == 1


def test_texts_are_short_clean_lines() -> None:
    bad = [row["text"] for _, row in ROWS if not 1 <= len(row["text"].split()) <= 40]
    bad += [
        row["text"]
        for _, row in ROWS
        if not row["text"].isprintable() or row["text"] != " ".join(row["text"].split())
    ]
    bad += [row["text"] for _, row in ROWS if not normal(row["text"])]
    assert bad == []


def test_the_readme_names_every_file_and_intent() -> None:
    readme = (CORPUS / "README.md").read_text(encoding="utf-8")
    assert [
        name for name in [*(f"{domain}.csv" for domain in DOMAINS), *TEXTS] if f"`{name}`" not in readme
    ] == []
