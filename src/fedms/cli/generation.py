"""`fedms predict` and `fedms evaluate` for a run of `task: text`: prompts in, texts or losses out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedms.core.errors import ConfigError
from fedms.core.formatting import decimal, percent, whole

if TYPE_CHECKING:
    from fedms.runs.client import Client
    from fedms.runs.text_client import Generation

MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", metavar="N", help="task: text: the most tokens of a text.")
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", metavar="T", help="task: text: 0, the default, takes the likeliest token."),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", metavar="P", help="task: text: draw from the likeliest tokens of this share."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="task: text: end before this string; may be repeated."),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="task: text: seed of the draws.")]


def generation_options(model: Client, **given: Any) -> dict[str, Any]:
    """The options that were given, for `generate`.

    Raises:
        ConfigError: an option is given where the model predicts classes.
    """
    options = {name: value for name, value in given.items() if value not in (None, [])}
    if options and model.personal.config.task != "text":
        raise ConfigError(f"--{next(iter(options)).replace('_', '-')}: needs a run of task: text")
    return options


def show_texts(
    model: Client,
    batches: Iterable[Iterable[str]],
    prior: float | None,
    options: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Generate for each prompt as it comes; print a text, or one JSON object a line."""
    for prompts in batches:
        for prompt in prompts:
            [found] = model.generate([prompt], prior, **options)
            if as_json:
                typer.echo(json.dumps(asdict(found), ensure_ascii=False))
            else:
                _show(found)


def _show(found: Generation) -> None:
    weights = ""
    if found.local_weight is not None:
        weights = f"local {found.local_weight:.3f}  global {found.global_weight:.3f}  "
    typer.echo(f"{weights}{found.tokens} tokens, ended by {found.ended}\n{found.text.strip()}\n")


def generate_table(
    model: Client,
    path: Path,
    column: str | None,
    output: Path | None,
    prior: float | None,
    options: Mapping[str, Any],
) -> None:
    """Generate for every row, and write the rows with the texts or show them as JSON lines."""
    from fedms.runs.tables import GENERATED, check_no_answers, inputs_of, json_lines, read_rows, write_answers

    rows = read_rows(path, model.kind)
    check_no_answers(path, rows, GENERATED)
    found = model.generate([str(each) for each in inputs_of(path, rows, column, "text")], prior, **options)
    if output is not None:
        write_answers(output, rows, found)
        typer.echo(f"texts  {output}")
        return
    for line in json_lines(rows, found):
        typer.echo(line)


def evaluate_texts(
    model: Client,
    path: Path,
    column: str | None,
    label: str | None,
    output: Path | None,
    prior: float | None,
) -> None:
    """Show the loss of texts, or of answers in the column `label` to the prompts in `column`."""
    from fedms.core.files import write_json
    from fedms.runs.tables import inputs_of, labels_of, read_rows

    rows = read_rows(path, model.kind)
    answers = None if label is None else labels_of(path, rows, label)
    found = model.evaluate(inputs_of(path, rows, column, "text"), answers, prior)  # type: ignore[arg-type]
    said: Any = found
    if output is not None:
        used = model.prior if prior is None else prior
        write_json(output, {"client": model.name, "prior": used, **asdict(said)})
    typer.echo(
        f"tokens {whole(said.tokens)}  loss {decimal(said.nll, 4)}  "
        f"perplexity {decimal(said.perplexity, 2)}  right tokens {percent(said.token_accuracy)}\n"
        f"global expert alone {decimal(said.nll_global, 4)}  local expert alone {decimal(said.nll_local, 4)}"
        + ("" if said.local_weight is None else f"  weight of the local expert {decimal(said.local_weight)}")
    )
    if output is not None:
        typer.echo(f"metrics  {output}")
