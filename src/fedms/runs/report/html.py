"""What every report's HTML is made of: the frame, cards, pictures, tables, facts. No network, no script, light and dark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

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


class Strong(str):
    """A table's cell that stands out."""


def frame(title: str, heading: str, lead: str, content: Iterable[str]) -> str:
    """A whole page around its content, which is HTML already."""
    style = files("fedms.runs.report").joinpath("style.css").read_text(encoding="utf-8")
    return FRAME.substitute(
        title=escape(title),
        heading=escape(heading),
        lead=escape(lead),
        style=style,
        content="\n".join(part for part in content if part),
    )


def write_page(path: Path, text: str) -> Path:
    """Write the page whole or not at all: a full disk must not leave half a report over a whole one."""
    draft = path.with_name(f"{path.name}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return path


def section(title: str, *content: str) -> str:
    """A heading and what stands under it."""
    return "\n".join([f"<h2>{escape(title)}</h2>", *content])


def cards(each: Iterable[str]) -> str:
    """The headline numbers."""
    return '<section class="cards" aria-label="Headline numbers">\n' + "\n".join(each) + "\n</section>"


def card(title: str, value: str, meaning: str, kind: str = "") -> str:
    """One headline number and what it means."""
    return f'<div class="card {kind}"><h3>{escape(title)}</h3><div class="value">{escape(value)}</div><p>{escape(meaning)}</p></div>'


def note(text: str) -> str:
    """A small remark."""
    return f'<p class="note">{escape(text)}</p>'


def gallery(pictures: Sequence[Picture]) -> str:
    """The pictures side by side where there is room."""
    return '<section class="pictures">\n' + "\n".join(map(figure, pictures)) + "\n</section>"


def figure(picture: Picture) -> str:
    """A picture with its title and caption."""
    spoken = escape(f"{picture.title}. {picture.spoken or picture.caption}")
    svg = to_svg(picture).replace("<svg", f'<svg role="img" aria-label="{spoken}"', 1)
    kind = ' class="wide"' if picture.wide else ""
    title, caption = escape(picture.title), escape(picture.caption)
    return f'<figure{kind}><h3>{title}</h3><div class="scroll">{svg}</div><figcaption>{caption}</figcaption></figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls sideways by itself."""
    top = (
        "<thead><tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head) + "</tr></thead>"
        if head
        else ""
    )
    body = "\n".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table class="{kind}">{top}<tbody>\n{body}\n</tbody></table></div>'


def folded(summary: str, content: str) -> str:
    """Content that opens when its summary is touched."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def as_yaml(value: Any) -> str:
    """Nested values as readers of a config know them."""
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


def subject(config: Mapping[str, Any]) -> str:
    """Which model learns from which data."""

    def name(part: str, key: str) -> str:
        values = config.get(part)
        return clip(str(values.get(key, MISSING)) if isinstance(values, dict) else MISSING, 60)

    return f"{name('model', 'name')} on {name('data', 'source')}"


def _cell(text: str) -> str:
    return f"<strong>{escape(text)}</strong>" if isinstance(text, Strong) else escape(text)
