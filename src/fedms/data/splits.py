"""The splits of a source, and what is worth telling about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedms.core.errors import FedmsError
from fedms.data.table import Table

SPLITS = {
    "train": "train",
    "validation": "train",
    "valid": "train",
    "val": "train",
    "dev": "train",
    "test": "test",
}
"""Names of splits, and what each becomes: every client cuts a validation split of its own."""


@dataclass
class Source:
    """The tables of `train`, and of `test` if the source has one; and lines about what was left out.

    Where each file is one client's, there can be `validation`, too, between them.
    """

    splits: dict[str, list[Table]]
    notes: list[str] = field(default_factory=list)


def joined(source: str, splits: dict[str, list[Table]], notes: list[str]) -> Source:
    """Validation joined to train.

    Raises:
        FedmsError: no split is named train.
    """
    if "train" not in splits:
        raise FedmsError(f"{source}: has no split named train; splits: {', '.join(splits) or 'none'}")
    order = [name for name in SPLITS if name in splits]
    tables = {
        kind: [table for name in order if SPLITS[name] == kind for table in splits[name]]
        for kind in ("train", "test")
    }
    return Source({kind: found for kind, found in tables.items() if found}, notes)
