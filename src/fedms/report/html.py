"""A run as one HTML file: no network, no script, light and dark, readable on a phone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml

from fedms.report.figures import Picture, pictures, save_png, to_svg
from fedms.report.metrics import Run, number, read_run
from fedms.report.words import MISSING, clip, decimal, duration, percent, plural, scaled, whole

MOST_ROWS = 1000

PAGE = Template("""<!DOCTYPE html>
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
<section class="cards" aria-label="Headline numbers">
$cards
</section>
<h2>Pictures</h2>
<section class="pictures">
$pictures
</section>
<h2>Clients</h2>
$clients
<h2>What was run</h2>
$facts
$rounds
<details><summary>Configuration, every default filled in</summary><pre>$config</pre></details>
</main>
</body>
</html>
""")


def write_report(folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` into a finished run's folder.

    Returns:
        The report's path.

    Raises:
        FedmsError: the folder is not a finished run.
    """
    run = read_run(folder)
    drawn = pictures(run)
    (folder / "figures").mkdir(exist_ok=True)
    for picture in drawn:
        save_png(picture.figure, folder / "figures" / f"{picture.name}.png")
    path = folder / "report.html"
    draft = folder / "report.html.tmp"  # a full disk must not leave half a report over a whole one
    draft.write_text(page(run, drawn), encoding="utf-8")
    draft.replace(path)
    return path


def page(run: Run, drawn: Sequence[Picture]) -> str:
    """The HTML of a run with these pictures."""
    result = run.result
    method = clip(str(result.get("method", MISSING)))
    return PAGE.substitute(
        title=escape(f"{method}, seed {result.get('seed', MISSING)} – fedms"),
        heading=escape(
            f"{method}: {percent(number(result, 'accuracy_local'))} at home, {percent(number(result, 'accuracy_global'))} everywhere"
        ),
        lead=escape(_lead(run)),
        style=files("fedms.report").joinpath("style.css").read_text(encoding="utf-8"),
        cards="\n".join(_cards(run)),
        pictures="\n".join(_figure(picture) for picture in drawn) or '<p class="note">This run has nothing to draw.</p>',
        clients=_clients(run),
        facts=_facts(run),
        rounds=_rounds(run),
        config=escape(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)),
    )


def _lead(run: Run) -> str:
    def name(section: str, key: str) -> str:
        values = run.config.get(section)
        return clip(str(values.get(key, MISSING)) if isinstance(values, dict) else MISSING, 60)

    result = run.result
    size = f"{plural(int(number(result, 'clients') or 0), 'client')}, {plural(int(number(result, 'rounds') or 0), 'round')}"
    seed, time = result.get("seed", MISSING), duration(number(result, "seconds"))
    return f"{name('model', 'name')} on {name('data', 'source')}: {size}, seed {seed}, {time}."


def _cards(run: Run) -> Iterable[str]:
    r = run.result
    share = number(r, "gate_global_share")
    prior = number(r, "prior")
    yield _card(
        "At home", percent(number(r, "accuracy_local")), "Accuracy of a client's model on its own test data, mean over clients.", "local"
    )
    yield _card(
        "Worst tenth", percent(number(r, "accuracy_local_worst")), "The same for the tenth of the clients that fare worst.", "local"
    )
    yield _card(
        "Everywhere",
        percent(number(r, "accuracy_global")),
        "Accuracy of a client's model on everybody's test data, mean over clients.",
        "global",
    )
    yield _card("Before training", percent(number(r, "accuracy_base")), "Accuracy of the frozen model before any training.")
    if share is not None:
        at = "" if prior is None else f" with the prior at {prior:g}"
        yield _card(
            "Gate", percent(share), f"Mean weight that the gate gives the global expert{at}; the rest is the local expert's.", "third"
        )
    trained = number(r, "trainable_parameters")
    part = number(r, "trainable_fraction")
    yield _card("Trained", scaled(trained, "").strip(), f"Parameters that a client trains: {percent(part, 2)} of the model's.")
    down, evaluation = scaled(number(r, "downlink_bytes"), "B"), scaled(number(r, "evaluation_bytes"), "B")
    meaning = f"Uplink of all clients and rounds; {down} came down, and {evaluation} more went for evaluation."
    yield _card("Sent by clients", scaled(number(r, "uplink_bytes"), "B"), meaning)
    yield _card("Compute", scaled(number(r, "train_flops"), "FLOP"), "Floating-point operations spent on training, all clients together.")
    yield _card(
        "Time", duration(number(r, "seconds")), f"Wall time of the whole run; peak memory {scaled(number(r, 'peak_memory_bytes'), 'B')}."
    )


def _card(title: str, value: str, meaning: str, kind: str = "") -> str:
    return f'<div class="card {kind}"><h3>{escape(title)}</h3><div class="value">{escape(value)}</div><p>{escape(meaning)}</p></div>'


def _figure(picture: Picture) -> str:
    svg = to_svg(picture).replace("<svg", f'<svg role="img" aria-label="{escape(picture.title)}"', 1)
    kind = ' class="wide"' if picture.wide else ""
    title, caption = escape(picture.title), escape(picture.caption)
    return f'<figure{kind}><h3>{title}</h3><div class="scroll">{svg}</div><figcaption>{caption}</figcaption></figure>'


def _clients(run: Run) -> str:
    records = run.result.get("per_client") or []
    if not records:
        return '<p class="note">This run has no numbers of single clients.</p>'
    # the worst first: those are the clients that one looks for
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
    table = _table(["client", "samples", "own test data", "everybody's", "gate's global share"], rows)
    more = len(ordered) - MOST_ROWS
    return table + (f'<p class="note">{more:,} clients with higher accuracy are left out; result.json has all.</p>' if more > 0 else "")


def _facts(run: Run) -> str:
    failures = [failure for record in run.rounds for failure in record.get("failures") or []]
    rows = [[key.replace("_", " "), _fact(value)] for key, value in run.environment.items()]
    rows.insert(0, ["failed client updates", str(len(failures)) if failures else "none"])
    return _table([], rows, kind="facts")


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_fact(inner)}" for key, inner in value.items())
    return MISSING if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _rounds(run: Run) -> str:
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
    return f"<details><summary>Round by round</summary>{_table(head, rows)}</details>" + _failures(run)


def _failures(run: Run) -> str:
    rows = [[_place(record), *_failure(failure)] for record in run.rounds for failure in record.get("failures") or []]
    return (
        f"<details><summary>Failures ({len(rows):,})</summary>{_table(['round', 'client', 'reason'], rows, 'facts')}</details>"
        if rows
        else ""
    )


def _failure(failure: Any) -> list[str]:
    if not isinstance(failure, dict):
        return [str(failure), MISSING]
    return [str(failure.get("client", MISSING)), str(failure.get("reason", MISSING))]


def _place(record: Mapping[str, Any]) -> str:
    """`global 3`; of what is no round, such as the exchange of statistics, the name alone."""
    return f"{record.get('stage', MISSING)} {record.get('round') or ''}".strip()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    top = "<thead><tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head) + "</tr></thead>" if head else ""
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table class="{kind}">{top}<tbody>\n{body}\n</tbody></table></div>'
