"""The words of a report, and the commands that go on from it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from fedms.runs.report.html import Link, commands, folded, glossary, links, section

GLOSSARY: Mapping[str, str] = {
    "own data": "a client's own test samples, in the mixture of classes that this client meets",
    "everyone's data": "the test samples of all clients together",
    "global expert": "LoRA pairs and a head that all clients train together; one for all",
    "local expert": "LoRA pairs and a head that one client trains on its own data alone, and keeps",
    "gate": "gives each sample two weights, for the global and for the local expert, with a sum of 1",
    "prior": "how often a client meets its own kind of data, from 0 (global expert alone) to 1 (local expert "
    "alone); the gate starts from it",
    "frontier": "the accuracies on own and on everyone's data for each prior",
    "block": "a layer of the frozen transformer; active blocks are those with LoRA pairs that train",
    "cohort": "the clients that train in a round",
    "round": "one turn of the server: a cohort trains, the server averages what it sends",
    "stage": "rounds that train the same expert: first the global one, then the local ones",
    "point": "a hundredth of an accuracy: from 80 % to 81 % is one point",
}


def ending(folder: Path, files: Iterable[str], steps: Iterable[tuple[str, str]]) -> list[str]:
    """The end of every report: what to do next, where the numbers are, what the words mean."""
    there = [Link(name, name) for name in files if (folder / name).is_file()]
    return [
        section("What to do next", commands(steps)),
        section("The numbers", links(there)) if there else "",
        folded("Glossary", glossary(GLOSSARY)),
    ]


def command(*words: object) -> str:
    """A command line that a shell reads as these words."""
    return shlex.join(map(str, words))
