"""The report of a run: one HTML file without network or script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedms.core.formatting import MISSING, clip, decimal, duration, percent, plural, scaled, tally, whole
from fedms.runs.reading.measures import of_text
from fedms.runs.reading.run import FinishedRun, number, read_run
from fedms.runs.report.drawing import Picture, save_pictures
from fedms.runs.report.html import (
    as_yaml,
    card,
    cards,
    fact,
    folded,
    frame,
    gallery,
    note,
    section,
    subject,
    table,
    write_page,
)
from fedms.runs.report.run import losses
from fedms.runs.report.run.figures import pictures

PATHS = ("model_folder",)
"""Keys of environment.json that name a place on this machine, which a report does not show."""
MOST_ROWS = 1000


def write_report(folder: Path) -> Path:
    """Write report.html and figures/ (each picture as PNG, SVG and CSV) into a finished run's folder.

    Returns:
            The report's path.

        Raises:
            FedmsError: the folder is not a finished run.
    """
    run = read_run(folder)
    drawn = losses.pictures(run) if of_text(run.result) else pictures(run)
    save_pictures(drawn, folder / "figures")
    return write_page(folder / "report.html", page(run, drawn))


def page(run: FinishedRun, drawn: Sequence[Picture]) -> str:
    """The HTML of a run with these pictures."""
    result = run.result
    method, seed = clip(str(result.get("method", MISSING))), result.get("seed", MISSING)
    clients, rounds = (int(number(result, key) or 0) for key in ("clients", "rounds"))
    size = f"{plural(clients, 'client')}, {plural(rounds, 'round')}"
    own, everyone = (percent(number(result, key)) for key in ("accuracy_local", "accuracy_global"))
    return frame(
        f"{method}, seed {seed} – fedms",
        losses.heading(run)
        if of_text(result)
        else f"{method}: {own} on own data, {everyone} on everyone's data",
        f"{subject(run.config)}: {size}, seed {seed}, {duration(number(result, 'seconds'))}.",
        [
            cards(_cards(run)),
            section("Pictures", gallery(drawn) if drawn else note("This run has nothing to draw.")),
            section("Clients", losses.clients_table(run) if of_text(result) else _clients(run)),
            section("What was run", _facts(run), _rounds(run), _failures(run)),
            folded("Configuration, with every default", as_yaml(run.config)),
        ],
    )


def _cards(run: FinishedRun) -> Iterable[str]:
    yield from losses.cards(run) if of_text(run.result) else _accuracies(run)
    yield from _costs(run)


def _accuracies(run: FinishedRun) -> Iterable[str]:
    r = run.result
    yield card(
        "Own data",
        percent(number(r, "accuracy_local")),
        "Accuracy of a client's model on its own test data, mean over clients.",
        "local",
    )
    yield card(
        "Worst tenth",
        percent(number(r, "accuracy_local_worst")),
        "The same for the tenth of the clients with the lowest accuracy.",
        "local",
    )
    yield card(
        "Everyone's data",
        percent(number(r, "accuracy_global")),
        "Accuracy of a client's model on everyone's test data, mean over clients.",
        "global",
    )
    yield card(
        "Before training",
        percent(number(r, "accuracy_base")),
        "Accuracy of the frozen model before any training.",
    )


def _costs(run: FinishedRun) -> Iterable[str]:
    r = run.result
    share = number(r, "gate_global_share")
    prior = number(r, "prior")
    if share is not None:
        at = "" if prior is None else f" with prior {prior:g}"
        yield card(
            "Gate weight",
            percent(share),
            f"Mean gate weight of the global expert{at}; the rest is the weight of the local expert.",
            "third",
        )
    trained = number(r, "trainable_parameters")
    part = number(r, "trainable_fraction")
    yield card(
        "Trained",
        scaled(trained, "").strip(),
        f"Parameters that a client trains: {percent(part, 2)} of the model's.",
    )
    down, evaluation = scaled(number(r, "downlink_bytes"), "B"), scaled(number(r, "evaluation_bytes"), "B")
    meaning = f"Uplink of all clients and rounds. Downlink {down}; evaluation {evaluation} more."
    yield card("Sent by clients", scaled(number(r, "uplink_bytes"), "B"), meaning)
    spent = "Floating-point operations of training, all clients together"
    if (judging := number(r, "evaluation_flops")) is not None:
        spent += f"; validation and test took {scaled(judging, 'FLOP')} more"
    yield card("Compute", scaled(number(r, "train_flops"), "FLOP"), f"{spent}.")
    judging = number(r, "evaluation_seconds")
    part_of_it = "" if judging is None else f", of which {duration(judging)} for validation and test"
    meaning = (
        f"Wall time of the whole run{part_of_it}; peak memory {scaled(number(r, 'peak_memory_bytes'), 'B')}."
    )
    yield card("Time", duration(number(r, "seconds")), meaning)


def _clients(run: FinishedRun) -> str:
    records = run.result.get("per_client") or []
    if not records:
        return note("This run has no results of single clients.")
    # the lowest accuracy first: readers look for these clients
    ordered = sorted(records, key=lambda record: number(record, "accuracy_local") or 0.0)
    rows = [
        [
            clip(str(record.get("name", MISSING)), 80),
            whole(number(record, "samples")),
            decimal(number(record, "accuracy_local"), 4),
            decimal(number(record, "accuracy_global"), 4),
            decimal(number(record, "gate_global_share")),
        ]
        for record in ordered[:MOST_ROWS]
    ]
    head = ["client", "train samples", "own data", "everyone's data", "gate weight of the global expert"]
    listed = table(head, rows)
    more = len(ordered) - MOST_ROWS
    return listed + (
        note(f"{more:,} clients with higher accuracy are left out; result.json has all.") if more > 0 else ""
    )


def _facts(run: FinishedRun) -> str:
    failures = [failure for record in run.rounds for failure in record.get("failures") or []]
    rows = [
        [key.replace("_", " "), fact(value)] for key, value in run.environment.items() if key not in PATHS
    ]
    rows.insert(0, ["failed client updates", tally(failures) or "none"])
    return table([], rows, kind="facts")


def _rounds(run: FinishedRun) -> str:
    rows = [
        [
            _place(record),
            whole(number(record, "active_blocks")),
            str(len(record.get("cohort") or [])),
            str(len(record.get("failures") or [])),
            decimal(number(record, "train_loss")),
            decimal(number(record, "validation_score"), 4),
            scaled(number(record, "uplink_bytes"), "B"),
            scaled(number(record, "downlink_bytes"), "B"),
            duration(number(record, "seconds")),
        ]
        for record in run.rounds
    ]
    head = ["round", "blocks", "clients", "failed", "train loss", "validation", "up", "down", "time"]
    return folded("Round by round", table(head, rows))


def _failures(run: FinishedRun) -> str:
    rows = [
        [_place(record), *_failure(failure)]
        for record in run.rounds
        for failure in record.get("failures") or []
    ]
    return (
        folded(f"Failures ({len(rows):,})", table(["round", "client", "kind", "reason"], rows, "facts"))
        if rows
        else ""
    )


def _failure(failure: Any) -> list[str]:
    if not isinstance(failure, dict):
        return [str(failure), MISSING, MISSING]
    return [str(failure.get(key, MISSING)) for key in ("client", "kind", "reason")]


def _place(record: Mapping[str, Any]) -> str:
    """`global 3`; only the name for a line that is not a round, such as the exchange of statistics."""
    return f"{record.get('stage', MISSING)} {record.get('round') or ''}".strip()
