"""The commands that use one client of a finished run: `predict`, `evaluate`, `export`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fedms.cli.completion import complete_client
from fedms.cli.generation import (
    MaxTokens,
    Seed,
    Stop,
    Temperature,
    TopP,
    evaluate_texts,
    generate_table,
    generation_options,
    show_texts,
)
from fedms.cli.inputs import input_batches
from fedms.cli.streams import line_width, print_table
from fedms.core.errors import ConfigError
from fedms.core.formatting import clip, decimal, one_line, percent, whole

if TYPE_CHECKING:
    from fedms.federation.evaluation import Evaluation
    from fedms.runs.client import Client, Prediction

FIGURES = ("samples", "precision", "recall", "F1")
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")]
ClientName = Annotated[
    str,
    typer.Option("--client", metavar="NAME", help="The client.", autocompletion=complete_client),
]
ModelFolder = Annotated[
    Path | None,
    typer.Option("--model", metavar="FOLDER", help="The folder of the run's frozen model, if it has moved."),
]
Prior = Annotated[
    float | None,
    typer.Option(
        "--prior",
        metavar="P",
        help="Prior probability of own data, from 0 to 1; default: the prior of the run.",
    ),
]
Column = Annotated[
    str | None,
    typer.Option("--column", metavar="COLUMN", help="The table's column of texts, or of pictures."),
]


def predict(
    folder: RunFolder,
    client: ClientName,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT|FILE", help="Texts, .txt files of one text a line, or image files."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="CSV, TSV, JSONL or Parquet, or a folder of pictures: all its rows.",
        ),
    ] = None,
    column: Column = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="A new .csv, .tsv, .jsonl or .parquet file; default: JSON lines on standard output.",
        ),
    ] = None,
    prior: Prior = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, with every class.")
    ] = False,
    model_folder: ModelFolder = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    stop: Stop = None,
    seed: Seed = None,
) -> None:
    """Predict with one client's model; with task: text, generate a text for each prompt.

    Without TEXT, FILE or --input, each line of standard input is one input, answered as it comes.
    """
    _check_places(inputs, table, column, output)

    from fedms.runs.predict import load

    model = load(folder, client, model_folder)
    drawing = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    options = generation_options(model, **drawing, stop=stop, seed=seed)
    if model.personal.config.task == "text":
        if table is not None:
            generate_table(model, table, column, output, prior, options)
        else:
            prompts = (map(str, batch) for batch in input_batches(inputs, "text"))
            show_texts(model, prompts, prior, options, as_json)
        return
    if table is not None:
        _predict_table(model, table, column, output, prior)
        return
    width = 0
    for samples in input_batches(inputs, model.kind):
        predictions = model.predict(samples, prior)
        width = max(width, *(len(each.label) for each in predictions))
        _show(samples, predictions, width, as_json)


def _check_places(
    inputs: list[str] | None, table: Path | None, column: str | None, output: Path | None
) -> None:
    """Raise ConfigError where the options do not go together, before any work."""
    if table is None:
        for option, given in (("--column", column), ("--output", output)):
            if given is not None:
                raise ConfigError(f"{option}: needs --input")
    elif inputs:
        raise ConfigError("--input: is given beside TEXT or FILE; give one of the two")
    if table is not None and output is not None:
        from fedms.runs.tables import check_output

        check_output(output)


def _show(samples: Iterable[object], predictions: Sequence[Prediction], width: int, as_json: bool) -> None:
    """One line for each prediction."""
    for sample, each in zip(samples, predictions, strict=True):
        if as_json:
            typer.echo(json.dumps({"input": str(sample), **asdict(each)}, ensure_ascii=False))
            continue
        weights = (
            ""
            if each.local_weight is None
            else f"  local {each.local_weight:.3f}  global {each.global_weight:.3f}"
        )
        typer.echo(f"{each.label:<{width}}  {each.probability:.3f}{weights}  {one_line(sample)}")


def _predict_table(
    model: Client, path: Path, column: str | None, output: Path | None, prior: float | None
) -> None:
    """Predict every row, and write them or show them as JSON lines."""
    from fedms.runs.tables import (
        check_no_answers,
        inputs_of,
        json_lines,
        predictions,
        read_rows,
        write_answers,
    )

    rows = read_rows(path, model.kind)
    check_no_answers(path, rows)
    batches = predictions(model, inputs_of(path, rows, column, model.kind), prior)
    if output is not None:
        found = [each for batch in batches for each in batch]
        write_answers(output, rows, found)
        typer.echo(f"predictions  {output}")
        return
    done = 0
    for batch in batches:
        for line in json_lines(rows.slice(done, len(batch)), batch):
            typer.echo(line)
        done += len(batch)


def evaluate(
    folder: RunFolder,
    client: ClientName,
    table: Annotated[
        Path,
        typer.Option(
            "--input", metavar="FILE", help="CSV, TSV, JSONL or Parquet, or a folder of pictures by class."
        ),
    ],
    column: Column = None,
    label: Annotated[
        str | None, typer.Option("--label", metavar="COLUMN", help="The table's column of classes.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="A new .json file for all figures.")
    ] = None,
    prior: Prior = None,
    model_folder: ModelFolder = None,
) -> None:
    """Evaluate one client's model on labelled samples.

    It shows accuracy, macro-F1, the calibration error, and figures of each class; with task: text the loss of
    the texts in --column, or of the answers in --label to the prompts in --column.
    """
    from fedms.core.files import write_json
    from fedms.federation.evaluation import check_labels
    from fedms.federation.evaluation import evaluate as compared
    from fedms.runs.predict import load
    from fedms.runs.tables import check_new, inputs_of, labels_of, predictions, read_rows

    if output is not None:
        if output.suffix != ".json":
            raise ConfigError(f"--output {output}: must end in .json")
        check_new(output)
    model = load(folder, client, model_folder)
    if model.personal.config.task == "text":
        evaluate_texts(model, table, column, label, output, prior)
        return
    rows = read_rows(table, model.kind)
    inputs = inputs_of(table, rows, column, model.kind)
    labels = check_labels(model.classes, labels_of(table, rows, label), f"{table}: row")
    found = [each for batch in predictions(model, inputs, prior) for each in batch]
    answers, probabilities = [each.label for each in found], [each.probability for each in found]
    evaluation = compared(model.classes, labels, answers, probabilities)
    if output is not None:
        used = model.prior if prior is None else prior
        write_json(output, {"client": client, "prior": used, **asdict(evaluation)})
    _show_evaluation(evaluation)
    if output is not None:
        typer.echo(f"metrics  {output}")


def _show_evaluation(evaluation: Evaluation) -> None:
    """Figures of all samples, then a table of the classes."""
    from rich.text import Text

    from fedms.runs.report.tables import fitted

    cells: dict[str, list[Text]] = {name: [] for name in ("class", *FIGURES, "mostly taken for")}
    for at, (name, each) in enumerate(evaluation.classes.items()):
        wrong = [0 if other == at else count for other, count in enumerate(evaluation.confusion[at])]
        most = max(wrong)
        taken = f"{clip([*evaluation.classes][wrong.index(most)])} ({most:,})" if most else ""
        shares = (percent(share) for share in (each.precision, each.recall, each.f1))
        row = (clip(name), whole(each.samples), *shares, taken)
        for column, cell in zip(cells.values(), row, strict=True):
            column.append(Text(cell))
    print_table(fitted(cells, ("precision", "recall", "samples"), line_width(), "--output FILE has"))
    typer.echo(
        f"samples {whole(evaluation.samples)}  accuracy {percent(evaluation.accuracy)}  "
        f"macro-F1 {percent(evaluation.macro_f1)}  calibration error {decimal(evaluation.calibration_error)}"
    )


def export(
    folder: RunFolder,
    to: Annotated[Path, typer.Option("--to", metavar="DIR2", help="A new folder.")],
    client: Annotated[str | None, typer.Option("--client", metavar="NAME", help="The client.")] = None,
    everyone: Annotated[
        bool, typer.Option("--all", help="All clients of the run, each in a sub-folder of its name.")
    ] = False,
    merged: Annotated[
        str | None,
        typer.Option(
            "--merged",
            metavar="EXPERT",
            help="Merge this expert, global or local, into the model: a plain transformers folder.",
        ),
    ] = None,
    model_folder: ModelFolder = None,
) -> None:
    """Write one client's model as PEFT adapters.

    The folder also holds the heads, the gate, a model card, and predictor.py, which predicts without fedms.
    """
    if merged not in (None, "global", "local"):
        raise ConfigError(f"--merged: {merged!r:.80} is no expert; allowed: global, local")
    if everyone == (client is not None):
        raise ConfigError("--client: give either the name of a client or --all")

    from fedms.runs.export.export import check_empty, export_client
    from fedms.runs.predict import clients_of, load

    places = {name: to / name for name in clients_of(folder)} if client is None else {client: to}
    check_empty(to)
    for name, place in places.items():
        found = export_client(load(folder, name, model_folder), place, cast(Any, merged))
        for path in found.files:
            typer.echo(path)
        if found.note:
            typer.echo(f"note: no pipeline for {place}: {found.note}", err=True)
