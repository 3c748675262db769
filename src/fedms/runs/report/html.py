"""Parts of a report's HTML: frame, cards, pictures, tables, facts. They need no network and no script."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import yaml

from fedms.core.formatting import MISSING, clip
from fedms.runs.report.drawing import Picture, to_svg

FRAME = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<header>
<h1>$heading</h1>
<p class="lead">$lead</p>
</header>
<main>
$content
</main>
</body>
</html>
""")


PATHS = ("model_folder",)
"""Keys of environment.json that name a place on this machine, which a report does not show."""


class Strong(str):
    """A table cell in bold."""


class Link(str):
    """A table cell, or a text, that leads to a file beside the page."""

    to: str
    """The file's path from the page's folder."""

    def __new__(cls, text: str, to: str) -> Link:
        link = super().__new__(cls, text)
        link.to = to
        return link


def frame(title: str, heading: str, lead: str, content: Iterable[str]) -> str:
    """A page around its content, which is HTML."""
    style = files("fedms.runs.report").joinpath("style.css").read_text(encoding="utf-8")
    return FRAME.substitute(
        title=escape(title),
        heading=escape(heading),
        lead=escape(lead),
        style=style,
        content="\n".join(part for part in content if part),
    )


def write_page(path: Path, text: str) -> Path:
    """Write the page completely or not at all, so that a full disk does not destroy an earlier report."""
    draft = path.with_name(f"{path.name}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return path


def section(title: str, *content: str) -> str:
    """A heading with content."""
    return "\n".join([f"<h2>{escape(title)}</h2>", *content])


def cards(each: Iterable[str]) -> str:
    """The headline numbers, as many side by side as fill their rows."""
    shown = [*each]
    columns = min((4, 5, 3), key=lambda columns: -len(shown) % columns)
    return (
        f'<section class="cards" style="--columns: {columns}" aria-label="Headline numbers">\n'
        + "\n".join(shown)
        + "\n</section>"
    )


def card(title: str, value: str, meaning: str, kind: str = "") -> str:
    """One headline number and its meaning."""
    content = f'<h3>{escape(title)}</h3><div class="value">{escape(value)}</div><p>{escape(meaning)}</p>'
    return f'<div class="card {kind}">{content}</div>'


def note(text: str) -> str:
    """A remark in small print."""
    return f'<p class="note">{escape(text)}</p>'


def banner(text: str) -> str:
    """What a reader must know before anything else."""
    return f'<p class="banner" role="status">{escape(text)}</p>'


def statement(text: str) -> str:
    """The verdict, in the largest print after the heading."""
    return f'<p class="verdict">{escape(text)}</p>' if text else ""


def commands(each: Iterable[tuple[str, str]]) -> str:
    """Commands to copy, each with what it does."""
    lines = (f"<dt>{escape(what)}</dt><dd><pre>{escape(command)}</pre></dd>" for what, command in each)
    return '<dl class="commands">' + "\n".join(lines) + "</dl>"


def glossary(words: Mapping[str, str]) -> str:
    """Words and what they mean."""
    lines = (f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in words.items())
    return '<dl class="glossary">' + "\n".join(lines) + "</dl>"


def links(each: Iterable[Link]) -> str:
    """Files beside the page."""
    return '<p class="note">' + " · ".join(map(_linked, each)) + "</p>"


def gallery(pictures: Sequence[Picture]) -> str:
    """The pictures, side by side if the page is wide enough."""
    return '<section class="pictures">\n' + "\n".join(map(figure, _in_rows(pictures))) + "\n</section>"


def _in_rows(pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures in an order in which a narrow one has another beside it, as far as there are others."""
    placed: list[Picture] = []
    waiting: list[Picture] = []
    alone = False
    for picture in pictures:
        if picture.wide and alone:
            waiting.append(picture)
            continue
        placed.append(picture)
        if not picture.wide:
            alone = not alone
        if not alone:
            placed += waiting
            waiting = []
    return placed + waiting


def figure(picture: Picture) -> str:
    """A picture with its title and caption."""
    spoken = escape(f"{picture.title}. {picture.spoken or picture.caption}")
    svg = to_svg(picture).replace("<svg", f'<svg role="img" aria-label="{spoken}"', 1)
    kind = ' class="wide"' if picture.wide else ""
    title, caption = escape(picture.title), escape(picture.caption)
    hint = '<p class="hint" aria-hidden="true">scroll sideways →</p>' if picture.wide else ""
    content = f'<h3>{title}</h3>{hint}<div class="scroll">{svg}</div><figcaption>{caption}</figcaption>'
    return f"<figure{kind}>{content}</figure>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls sideways without the page."""
    top = (
        "<thead><tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head) + "</tr></thead>"
        if head
        else ""
    )
    body = "\n".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table class="{kind}">{top}<tbody>\n{body}\n</tbody></table></div>'


def folded(summary: str, content: str) -> str:
    """Content that opens with a click on its summary."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def as_yaml(value: Any) -> str:
    """Nested values as YAML, the form of a config file."""
    return f"<pre>{escape(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))}</pre>"


def fact(value: Any) -> str:
    """A value of any shape on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {fact(inner)}" for key, inner in value.items())
    return (
        MISSING
        if value is None
        else value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False)
    )


def environment_rows(environment: Mapping[str, Any]) -> list[list[str]]:
    """environment.json as rows of a table."""
    return [[key.replace("_", " "), fact(value)] for key, value in environment.items() if key not in PATHS]


def subject(config: Mapping[str, Any]) -> str:
    """Model and data set of a config."""

    def name(part: str, key: str) -> str:
        """The value of a key of a section."""
        values = config.get(part)
        return clip(str(values.get(key, MISSING)) if isinstance(values, dict) else MISSING, 60)

    return f"{name('model', 'name')} on {name('data', 'source')}"


def _cell(text: str) -> str:
    if isinstance(text, Link):
        return _linked(text)
    return f"<strong>{escape(text)}</strong>" if isinstance(text, Strong) else escape(text)


def _linked(link: Link) -> str:
    return f'<a href="{escape(quote(link.to))}">{escape(link)}</a>'
