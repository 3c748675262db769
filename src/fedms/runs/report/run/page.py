"""The report of a run: one HTML file without network or script."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedms.core.formatting import MISSING, clip, decimal, duration, percent, plural, scaled, tally, whole
from fedms.core.paths import is_name
from fedms.runs.reading.measures import of_text
from fedms.runs.reading.predictions import predictions_path
from fedms.runs.reading.run import CONFIG, Run, number, read_run
from fedms.runs.report.drawing import Picture, save_pictures
from fedms.runs.report.html import (
    Link,
    as_yaml,
    banner,
    card,
    cards,
    environment_rows,
    folded,
    frame,
    gallery,
    note,
    section,
    statement,
    subject,
    table,
    write_page,
)
from fedms.runs.report.run import losses
from fedms.runs.report.run.answers import disagreement
from fedms.runs.report.run.figures import pictures
from fedms.runs.report.run.rounds import place
from fedms.runs.report.run.verdict import verdict
from fedms.runs.report.words import command, ending

MOST_ROWS = 1000
CONFIGURATION = "Configuration, with every default"


def write_report(folder: Path) -> Path:
    """Write report.html and figures/ (each picture as PNG, SVG and CSV) into a run's folder.

    The report of a run that is not finished shows what is there, and says so.

    Returns:
            The report's path.

        Raises:
            FedmsError: the folder is not a run, or a file of it is damaged.
    """
    run = read_run(folder, unfinished=True)
    drawn = losses.pictures(run) if of_text(run.config) else pictures(run)
    save_pictures(drawn, folder / "figures")
    return write_page(folder / "report.html", page(run, drawn))


def page(run: Run, drawn: Sequence[Picture]) -> str:
    """The HTML of a run with these pictures."""
    shown = section("Pictures", gallery(drawn) if drawn else note("This run has nothing to draw."))
    told = section("What was run", _facts(run), _rounds(run), _failures(run))
    files = ("result.json", "metrics.jsonl", "config.yaml", "environment.json")
    end = [told, *ending(run.folder, files, _next(run)), folded(CONFIGURATION, as_yaml(run.config))]
    if not run.finished:
        return _unfinished_page(run, [shown, *end])
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
            "" if of_text(result) else statement(verdict(run)),
            cards(_cards(run)),
            shown,
            disagreement(run),
            section("Clients", losses.clients_table(run) if of_text(result) else _clients(run)),
            *end,
        ],
    )


def _unfinished_page(run: Run, content: Sequence[str]) -> str:
    method, seed = clip(str(run.config.get("method", MISSING))), run.config.get("seed", MISSING)
    said = "This run is not finished: it was stopped, it failed, or it still goes on. "
    last = run.rounds[-1] if run.rounds else {}
    done = run.rounds_done
    so_far = f"{plural(done, 'round')} so far" if done else "No round so far"
    planned = f" (the last: {place(last)} of {last['rounds']})" if done and last.get("rounds") else ""
    return frame(
        f"{method}, seed {seed}, not finished – fedms",
        f"{method}, not finished",
        f"{subject(run.config)}, seed {seed}.",
        [
            banner(f"{said}{so_far}{planned}; there are no test figures yet."),
            cards(_cards_so_far(run)) if run.rounds else "",
            *content,
        ],
    )


def _cards_so_far(run: Run) -> Iterable[str]:
    scores = [
        (record, score) for record in run.rounds if (score := number(record, "validation_score")) is not None
    ]
    if scores:
        record, score = scores[-1]
        if of_text(run.config):
            meaning = f"Mean loss of a token of the clients' validation data after {place(record)}, in nats."
            yield card("Validation loss", decimal(-score), meaning, "local")
        else:
            meaning = f"Mean accuracy on the clients' validation data after {place(record)}."
            yield card("Validation score", percent(score), meaning, "local")
    for title, key, unit, meaning in (
        ("Sent by clients", "uplink_bytes", "B", "Uplink of all clients so far."),
        ("Compute", "train_flops", "FLOP", "Floating-point operations of training so far."),
    ):
        yield card(title, scaled(sum(number(record, key) or 0.0 for record in run.rounds), unit), meaning)
    seconds = sum(number(record, "seconds") or 0.0 for record in run.rounds)
    yield card("Time", duration(seconds), "Wall time of what is done.")


def _next(run: Run) -> Iterable[tuple[str, str]]:
    """What to do next, and the command that does it."""
    folder = run.folder
    if not run.finished:
        yield (
            "go on to the same result",
            command("fedms", "run", folder / CONFIG, "--out", folder, "--resume"),
        )
        yield "show what has come since", command("fedms", "report", folder)
        return
    held = [client["name"] for client in run.clients if _model(folder, client.get("name"))]
    if held and run.config.get("task") != "text":
        name = held[0]
        of = (folder, "--client", name)
        new = ("--input", "new.csv", "--output", "answers.csv")
        yield "predict a table of new texts, or a folder of pictures", command("fedms", "predict", *of, *new)
        place, who = (
            json.dumps(str(folder)),
            json.dumps(name, ensure_ascii=False),
        )  # no quotes that a shell escapes
        asked = f'fedms.load({place}, {who}).explain(["a text, or the path of a picture"])'
        yield (
            "explain a prediction: the gate's evidence, and what each expert says",
            command("python", "-c", f"import fedms; print({asked})"),
        )
        if number(run.result, "trainable_parameters"):
            yield "export the experts as adapters", command("fedms", "export", *of, "--to", f"{name}-model")
    against = dict.fromkeys((str(run.result.get("method")), "fedavg", "local"))
    choices = ("--methods", ",".join(against), "--seeds", "0-2", "--out", f"{folder}-compare")
    yield "compare with other methods", command("fedms", "compare", folder / CONFIG, *choices)
    if (folder / "server").is_dir():
        yield "free the disk of states that only resuming needs", command("fedms", "clean", folder)


def _model(folder: Path, client: object) -> bool:
    return is_name(client) and (folder / "clients" / str(client) / "model.safetensors").is_file()


def _cards(run: Run) -> Iterable[str]:
    yield from losses.cards(run) if of_text(run.result) else _accuracies(run)
    yield from _costs(run)


def _accuracies(run: Run) -> Iterable[str]:
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


def _costs(run: Run) -> Iterable[str]:
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
    yield from _privacy(run)
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


def _table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table under `key`; empty where there is none."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _privacy(run: Run) -> Iterable[str]:
    """What differential privacy promises, and the most that a client's ledger says it has spent of it."""
    told = _table(run.result, "privacy")
    spent = _table(told, "spent")
    known = [value for name in spent if (value := number(spent, name)) is not None]
    if not known:
        return
    delta = number(told, "delta")
    meaning = (
        f"Largest epsilon in the clients' ledgers; the budget is {decimal(number(told, 'epsilon'), 2)} at "
        f"delta {MISSING if delta is None else f'{delta:g}'} for a {told.get('unit', MISSING)}. "
        "Not covered: numbers of samples and test accuracies."
    )
    if told.get("protects") is not True:
        meaning += " This noise protects nobody: the run's seed draws it."
    yield card("Privacy", f"ε {decimal(max(known), 2)}", meaning)


def _clients(run: Run) -> str:
    records = run.clients
    if not records:
        return note("This run has no results of single clients.")
    spent = _table(_table(run.result, "privacy"), "spent")
    # the lowest accuracy first: readers look for these clients
    ordered = sorted(records, key=lambda record: number(record, "accuracy_local") or 0.0)
    rows = [
        [
            _client(run, record),
            whole(number(record, "samples")),
            decimal(number(record, "accuracy_local"), 4),
            decimal(number(record, "accuracy_global"), 4),
            decimal(number(record, "gate_global_share")),
            *([decimal(number(spent, str(record.get("name"))))] if spent else []),
        ]
        for record in ordered[:MOST_ROWS]
    ]
    head = ["client", "train samples", "own data", "everyone's data", "gate weight of the global expert"]
    head += ["epsilon spent"] if spent else []
    listed = table(head, rows)
    more = len(ordered) - MOST_ROWS
    return listed + (
        note(f"{more:,} clients with higher accuracy are left out; result.json has all.") if more > 0 else ""
    )


def _client(run: Run, record: Mapping[str, Any]) -> str:
    """A client's name, which leads to its predictions where they are here."""
    name, place = clip(str(record.get("name", MISSING)), 80), predictions_path(record.get("name"))
    there = place is not None and (run.folder / place).is_file()
    return Link(name, place.as_posix()) if place is not None and there else name


def _facts(run: Run) -> str:
    failures = [failure for record in run.rounds for failure in record.get("failures") or []]
    rows = environment_rows(run.environment)
    rows.insert(0, ["failed client updates", tally(failures) or "none"])
    return table([], rows, kind="facts")


def _rounds(run: Run) -> str:
    rows = [
        [
            place(record),
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


def _failures(run: Run) -> str:
    rows = [
        [place(record), *_failure(failure)]
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
