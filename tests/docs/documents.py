"""The pages that people read, their blocks of commands, and their Python files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(fedms [a-z][^`]*)`")
INDENTED = re.compile(r"^ {4}((?:fedms|make|python|pip) (?:[^\n\\]|\\\n?)*)", re.MULTILINE)
SHELL = ("sh", "bash", "console")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block, in order."""
    yield from ((found[1], found[2]) for found in FENCED.finditer(page.read_text()))


def lines_of(block: str) -> list[str]:
    """The commands of a block: lines that go on are joined, prompts and empty lines left out."""
    joined = block.replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").strip() for line in joined if line.strip() and line[:1] != "#"]


def commands(page: Path) -> list[str]:
    """All commands of the page: of its fenced shell blocks, and of its indented ones."""
    fenced = [line for language, text in blocks(page) if language in SHELL for line in lines_of(text)]
    rest = FENCED.sub("", page.read_text())
    return fenced + [line for found in INDENTED.finditer(rest) for line in lines_of(found[1])]


def words_of(line: str) -> list[list[str]]:
    """The words of a command line, one list for each part of a pipe."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;<>")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if word in ("|", ";", "&&"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def python_files(page: Path) -> dict[str, str]:
    """The Python blocks that begin with the name of a file."""
    found = (re.match(r"# (\w+\.py)\n", text) for language, text in blocks(page) if language == "python")
    return {match[1]: match.string for match in found if match}
