"""The config for a user's own data, with a comment at each key: `fedms init`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedms.config.data import DataConfig
from fedms.config.examples import EXAMPLES
from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt, plural
from fedms.data import sources
from fedms.data.columns import LABEL_NAMES, TEXT_NAMES
from fedms.data.files import read_file
from fedms.data.table import Table

MOST_CLIENTS = 20
"""Clients at most where rows are divided among them."""
SAMPLES_A_CLIENT = 40
"""Samples that a client gets at least, where the data are enough for two clients."""
MOST_CLASSES = 200
"""Different values at most of a column that is taken for the label."""
OWNERS = ("client", "user", "user_id", "site", "hospital", "domain", "speaker", "author", "device", "store")
"""Names of columns that say whose a sample is."""
PROMPT_NAMES = ("prompt", "question", "instruction", "input", "request", "query")
"""Names of columns that precede an answer."""
ANSWER_NAMES = ("answer", "response", "reply", "completion", "output", "target")
"""Names of columns that a language model learns to write."""
CAUSAL_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

Started = tuple[str, list[str]]
"""The text of a config, and lines on what was taken from the data."""


def starter(kind: str, data: str | None, name: str) -> Started:
    """A config in YAML with comments, for data of this kind, to be written to a file of this name.

    Raises:
        FedmsError: the data cannot be read, or have no columns for text and label.
    """
    return STARTERS[kind](data or "", name)


def _assistant(data: str, name: str) -> Started:
    text = (EXAMPLES / "assistant.yaml").read_text(encoding="utf-8")
    return text.replace("examples/assistant.yaml", name), ["data    the embedded corpus of requests"]


def _csv(data: str, name: str) -> Started:
    table = _file(data)
    picture = next(iter(table.images), None)
    label = _label(table, data)
    text = None if picture else _text(table, label, data)
    dataset = sources.load(DataConfig(source=data, text=text, image=picture, label=label), 0)
    clients, rule, whose = _division(table, (text, label), LABEL_SKEW)
    what, column = ("image", picture) if picture else ("text", text)
    columns = f"  {what}: {_quoted(column)}\n  label: {_quoted(label)}\n"
    taken = [
        f"data    {data}: {plural(table.rows, 'sample')}, {plural(len(dataset.class_names), 'class')}",
        f"{what:<7} column {column}",
        f"label   column {label}: {_some(dataset.class_names)}",
        f"clients {clients}, {whose}",
    ]
    source = f"  source: {_quoted(data)}\n{columns}"
    return _config(name, source, rule, clients, PICTURES if picture else TEXTS), taken


def _passages(data: str, name: str) -> Started:
    table = _file(data)
    usable = [column for column in table.scalars if not set(column) & set("{}.[]!:")]
    prompt, answer = (_named_as(names, usable) for names in (PROMPT_NAMES, ANSWER_NAMES))
    if not (prompt and answer):  # the two longest, in the file's order
        texts = [column for column in usable if column.lower() not in OWNERS]
        longest = sorted(texts, key=lambda column: -_length(table, column))[:2]
        if len(longest) < 2:
            raise FedmsError(f"{data}: no two columns for prompt and answer; {_named(table)}")
        prompt, answer = sorted(longest, key=texts.index)
    clients, rule, whose = _division(table, (prompt, answer), EQUAL_SHARES)
    read = DataConfig(source=data, prompt=f"{{{prompt}}}", answer=f"{{{answer}}}")
    found = sources.load(read, 0, task="text")  # every row must have both
    source = (
        f"  source: {_quoted(data)}\n"
        f"  prompt: {_quoted(read.prompt)}   # columns in braces; words may stand around them\n"
        f"  answer: {_quoted(read.answer)}   # the loss is on this alone\n"
    )
    taken = [
        f"data    {data}: {plural(len(found.inputs), 'sample')}",
        f"prompt  column {prompt}",
        f"answer  column {answer}",
        f"clients {clients}, {whose}",
        f"model   {CAUSAL_MODEL}, from the hub when it first runs; model.name takes a folder, too",
    ]
    return _config(name, source, rule, clients, PASSAGES), taken


def _sites(data: str, name: str) -> Started:
    if not Path(data).expanduser().is_dir():
        raise FedmsError(f"{data}: no such folder")
    dataset = sources.load(DataConfig(source=data), 0, by_client=True)
    clients = len(dataset.clients)
    rows = f"{plural(len(dataset.labels), 'sample')}, {plural(len(dataset.class_names), 'class')}"
    taken = [f"data    {data}: {rows}", f"clients {clients}: {_some(dataset.clients)}"]
    rule = "  rule: files              # each file or sub-folder is one client\n"
    model = PICTURES if dataset.kind == "image" else TEXTS
    return _config(name, f"  source: {_quoted(data)}\n", rule, clients, model), taken


STARTERS: dict[str, Callable[[str, str], Started]] = {
    "assistant": _assistant,
    "csv": _csv,
    "sites": _sites,
    "text": _passages,
}
"""By kind: from the data and the file's name to the config."""


LABEL_SKEW = (
    "drawn with label skew (rule dirichlet)",
    "  rule: dirichlet          # label skew; or `column`, with `column: NAME` of whose it is\n"
    "  alpha: 0.5               # 0.1 is a strong skew\n",
)
EQUAL_SHARES = (
    "equal shares (rule equal)",
    "  rule: equal              # or `column`, with `column: NAME` of whose it is\n",
)


def _division(table: Table, used: tuple[str | None, ...], otherwise: tuple[str, str]) -> tuple[int, str, str]:
    """How many clients there are, the lines of section `partition`, and the same in words."""
    if owner := _owner(table, used):
        clients = len(set(table.scalars[owner]))
        lines = (
            f"  rule: column             # each value of a column is one client\n  column: {_quoted(owner)}\n"
            "  alpha: null              # no skew within a client; a number divides a value among clients\n"
        )
        words = f"one for each value of column {owner}"
    else:
        clients = max(2, min(MOST_CLIENTS, table.rows // SAMPLES_A_CLIENT))
        words, lines = otherwise
    return clients, f"  clients: {clients}\n{lines}", words


@dataclass(frozen=True)
class _Model:
    """The model for one kind of data."""

    name: str
    origin: str
    """What else `model.name` takes, for a comment"""
    keys: str = ""
    """Further lines of the config, before its section `model`"""


TEXTS = _Model("minilm", "embedded; or a name on the hub, or a folder")
PICTURES = _Model("WinKawaks/vit-tiny-patch16-224", "a name on the Hugging Face hub, or a folder")
PASSAGES = _Model(
    CAUSAL_MODEL,
    "a causal model: a name on the Hugging Face hub, or a folder",
    "task: text                 # the next token\n",
)


def _config(name: str, source: str, rule: str, clients: int, model: _Model) -> str:
    return TEMPLATE.format(
        name=name,
        source=source,
        rule=rule,
        model=model.name,
        origin=model.origin,
        keys=model.keys,
        cohort=min(10, clients),
    )


TEMPLATE = """# FedMS on your own data.
#
#   fedms partition {name}     who holds what, before any training
#   fedms run {name}           the run; then open its report.html
#   fedms compare {name} --methods fedms,fedavg,local
#
# `fedms config` lists all keys, and `fedms config KEY` explains one.

seed: 0                    # everything random is derived from it
method: fedms              # `fedms methods` lists the others
device: auto               # a GPU where there is one; or cpu
{keys}
model:
  name: {model}             # {origin}

data:
{source}
partition:
{rule}
federation:
  cohort: {cohort}               # clients asked in a round of the global stage
  rounds_global: 10        # stage 1: the global expert
  rounds_local: 3          # stage 2: local experts and gate

activation:
  rule: fixed              # two blocks from the start to the end; more blocks cost more
  blocks: 2

evaluation:
  everyone: 400            # accuracy_global uses at most this many test samples of all clients
"""


def _file(data: str) -> Table:
    path = Path(data).expanduser()
    if not path.is_file():
        raise FedmsError(f"{data}: no such file")
    return read_file(path, DataConfig(source=data))


def _named_as(names: Sequence[str], columns: Iterable[str]) -> str | None:
    """The column that has the first of these names, in any case."""
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in names if name in lower), None)


def _length(table: Table, column: str) -> int:
    """Characters of all values together."""
    return sum(map(len, filter(None, table.scalars[column])))


def _label(table: Table, data: str) -> str:
    """The column of the label: by its name, or else the one with the fewest different values that repeat."""
    if named := _named_as(LABEL_NAMES, table.scalars):
        return named
    found = {
        column: len(set(values))
        for column, values in table.scalars.items()
        if 2 <= len(set(values)) <= min(MOST_CLASSES, table.rows // 3) and column.lower() not in OWNERS
    }
    if not found:
        raise FedmsError(f"{data}: no column looks like a label: a few values that repeat; {_named(table)}")
    return min(found, key=lambda column: found[column])


def _text(table: Table, label: str, data: str) -> str:
    """The column of the text: by its name, or else the one with the longest values on average."""
    columns = [column for column in table.scalars if column != label]
    if named := _named_as(TEXT_NAMES, columns):
        return named
    if not columns:
        raise FedmsError(f"{data}: no column for the text beside the label; {_named(table)}")
    return max(columns, key=lambda column: _length(table, column))


def _owner(table: Table, used: Collection[str | None]) -> str | None:
    """A column whose name says that it tells whose a sample is, with enough samples for each."""
    for column, values in table.scalars.items():
        least = min(Counter(values).values(), default=0)
        if column not in used and column.lower() in OWNERS and least >= SAMPLES_A_CLIENT // 2:
            return column if len(set(values)) > 1 else None
    return None


def _named(table: Table) -> str:
    return f"columns: {table.names}"


def _quoted(name: str | None) -> str:
    return json.dumps(name, ensure_ascii=False)


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(excerpt(name) for name in names[:4])
    return shown + (", ..." if len(names) > 4 else "")
