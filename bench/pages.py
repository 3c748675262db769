"""Pages of the documentation site that are made from elsewhere: hooks of mkdocs (`make docs`).

The home page and the page of the run folder are made from README.md, the page of commands from the command
line itself. A link out of `docs/` becomes plain text, since the site holds no code.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = "README.md"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
"""A link in Markdown, that is no picture: its text and its target"""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    text = (ROOT / README).read_text(encoding="utf-8")
    made = {
        "index.md": inside(text, ""),
        "reference/run-folder.md": inside(
            "# The run folder\n" + section(text, "The run folder"), "", "reference"
        ),
        "reference/commands.md": commands(),
    }
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **more: Any) -> str:
    """The page with links out of `docs/` as plain text."""
    folder = posixpath.dirname(page.file.src_uri)
    return markdown if page.file.generated_by else inside(markdown, posixpath.join("docs", folder))


def inside(markdown: str, folder: str, shown_in: str | None = None) -> str:
    """The text of a file in a folder of the repository, with links that hold on the site.

    Args:
        markdown: the text.
        folder: where the file lies, from the root.
        shown_in: the folder of the site in which it is shown; default: the same, below `docs`.
    """
    place = posixpath.relpath(folder or "docs", "docs") if shown_in is None else shown_in

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if "://" in target or target.startswith("#"):
            kept = f"../index.md{target}" if shown_in and target.startswith("#") else target
            return f"[{text}]({kept})"
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        path = "docs/index.md" if path == README else path
        if not path.startswith("docs/"):
            return text
        there = posixpath.relpath(path, posixpath.join("docs", place))
        return f"[{text}]({there}{'#' if anchor else ''}{anchor})"

    pictures = markdown.replace("](docs/pictures/", "](pictures/") if not folder else markdown
    return LINK.sub(link, pictures)


def section(markdown: str, title: str) -> str:
    """The text below a heading of the second level."""
    return markdown.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def commands() -> str:
    """All commands with their arguments and options, from the command line itself."""
    import typer

    from fedms.cli.main import app

    group: Any = typer.main.get_command(app)
    parts = ["# Commands\n", f"{group.help}\n"]
    for name, command in sorted(group.commands.items()):
        usage = " ".join(["fedms", name, *_usage(command)])
        parts += [f"## {name}\n", f"    {usage}\n", f"{command.help}\n"]
        rows = [row for parameter in command.params if (row := _row(parameter))]
        parts.append("| | |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else "")
    return "\n".join(parts)


def _usage(command: Any) -> list[str]:
    """The arguments, and a word for the options."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    shown = [each.metavar if each.required else f"[{each.metavar}]" for each in arguments]
    return [*shown, "[OPTIONS]"]


def _row(parameter: Any) -> str:
    """A line of the table for an argument or an option; empty for `--help`."""
    if parameter.name == "help":
        return ""
    names = [parameter.metavar] if parameter.param_type_name == "argument" else [*parameter.opts]
    if parameter.param_type_name == "option" and not parameter.is_flag:
        names[-1] += f" {parameter.metavar or parameter.name.upper()}"
    text = " ".join((parameter.help or "").split())
    return f"| `{', '.join(names)}` | {text} |".replace("|...", "\\|...")
