"""A partition as files: what each client holds, the class names, and everyone's test samples.

    DIR/classes.json                                    the class names in their order, for `data.classes`
    DIR/public.jsonl                                    for `evaluation.public`
    DIR/sites/NAME/{train,validation,test}.jsonl        for `data.source` with `partition.rule: files`

Texts are JSON lines, which keep every character. Pictures are Parquet files of PNGs (8-bit RGB, as a model
gets them), which lose no pixel.
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedms.core.errors import FedmsError, StorageError
from fedms.core.files import make_folder, unmake, write_json
from fedms.data.federated import SPLITS, FederatedDataset, Samples

PICTURES_AT_ONCE = 64
"""Pictures held in memory while they are written"""


def check_can_write(folder: Path) -> None:
    """Raise FedmsError unless the folder is empty or not there."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise FedmsError(f"{folder}: already there and not empty; name another folder")


def write_clients(data: FederatedDataset, folder: Path) -> None:
    """Write all samples into a new folder, whole or not at all.

    Args:
        data: all clients' samples, with everyone's test samples.
        folder: must be empty or not there.

    Raises:
        FedmsError: the folder is not empty or cannot be written, or a picture cannot be decoded.
    """
    check_can_write(folder)
    made = make_folder(folder)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partition.") as draft:
            inside = Path(draft) / "partition"  # the draft itself can be read by its owner alone
            inside.mkdir()
            for client in data.clients:
                for split in SPLITS:
                    _write(data, data.samples(client, split), inside / "sites" / client / split)
            _write(data, data.everyone("test"), inside / "public")
            write_json(inside / "classes.json", list(data.class_names))
            inside.replace(folder)
    except OSError as error:
        unmake(made)
        raise StorageError(f"{folder}: cannot be written: {error.strerror or error}") from None
    except BaseException:
        unmake(made)
        raise


def _write(data: FederatedDataset, samples: Samples, path: Path) -> None:
    """Write samples in their order; `path` has no suffix yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = [data.class_names[label] for label in samples.labels.tolist()]
    if data.kind == "image":
        _write_pictures(data, samples, labels, path.with_name(f"{path.name}.parquet"))
        return
    texts = [data.inputs[row] for row in samples.rows.tolist()]
    lines = (json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True))
    path.with_name(f"{path.name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_pictures(data: FederatedDataset, samples: Samples, labels: list[str], path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([("image", pa.struct([("bytes", pa.binary())])), ("label", pa.string())])
    with parquet.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, len(labels), PICTURES_AT_ONCE):
            some = slice(start, start + PICTURES_AT_ONCE)
            pictures = [{"bytes": _png(data.inputs[row])} for row in samples.rows[some].tolist()]
            writer.write_table(pa.table({"image": pictures, "label": labels[some]}, schema))


def _png(picture: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.asarray(picture)).save(content, "PNG")  # its pixels alone, no place or profile
    return content.getvalue()
