"""Files that are written whole or not at all, and read only where they are whole. Safetensors and JSON, never pickle.

Whatever is written goes through this module's `os`: its calls are the points at which a process, a disk or the power can fail.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, TensorSpec, serialize
from safetensors.torch import load as load_arrays
from torch import Tensor

from fedms.core.errors import FedmsError, StorageError

LEFTOVER = re.compile(r"\..+\.\d+\.\d+")
"""Names of temporary files: those that a killed process has left may go."""
DIGEST = "sha256"


# writing


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, to stay also when the power goes: temporary file, fsync, rename, fsync of the folder."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with _told(path):
        try:
            _put(temporary, data, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.replace(temporary, path)  # noqa: PTH105 (every change of a file is a call of this module's `os`)
        except BaseException:
            remove(temporary)
            raise
        _sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line. One that was cut short by a failure is for the reader to recognise: it does not end."""
    with _told(path):
        new = not path.exists()
        _put(path, (line + "\n").encode(), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if new:
            _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_arrays(
    path: Path, arrays: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays and plain values in one safetensors file, with a digest of both; what a reader will find."""
    held = plain(arrays)
    values = json.loads(json.dumps(dict(meta)))
    write_bytes(path, encode_arrays(held, {**values, DIGEST: _digest(held, values)}))
    return held, values


def plain(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays as they can be written: values alone, on the CPU, contiguous."""
    return {name: array.detach().cpu().contiguous() for name, array in arrays.items()}


def encode_arrays(arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """Plain arrays and values as safetensors bytes. Each array's memory is named to the serializer directly: `safetensors.torch.save`
    says the same by way of ctypes and NumPy, which costs a small client more than its bytes."""
    specs = {name: _spec(array) for name, array in arrays.items()}
    data: bytes = serialize(specs, metadata={"fedms": json.dumps(meta)})
    return data


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` and the like."""
    return str(dtype).removeprefix("torch.")


def _spec(array: Tensor) -> TensorSpec:
    return TensorSpec(
        dtype=dtype_name(array.dtype), shape=array.shape, data_ptr=array.data_ptr(), data_len=array.nbytes
    )


def make_folder(path: Path) -> list[Path]:
    """A folder and those above it, to stay also when the power goes; those that were made, or none of them."""
    made = []
    try:
        for each in reversed([each for each in (path, *path.parents) if not each.exists()]):
            with contextlib.suppress(FileExistsError):  # made by another worker meanwhile
                os.mkdir(each)  # noqa: PTH102
                made.append(each)
            _sync_folder(each.parent)
        if not path.is_dir():
            raise NotADirectoryError(0, "there is a file of that name")
    except OSError as error:
        unmake(made)
        raise StorageError(f"{path}: cannot be made: {_reason(error)}") from None
    return made


def unmake(made: list[Path]) -> None:
    """Take back what `make_folder` made, where nothing has come into it."""
    for each in reversed(made):
        with contextlib.suppress(OSError):
            os.rmdir(each)  # noqa: PTH106


def remove(path: Path) -> None:
    """Remove a file that may not be there. One that stays does no harm, so a failure is none."""
    with contextlib.suppress(OSError):
        os.unlink(path)  # noqa: PTH108


def is_leftover(name: str) -> bool:
    """Whether a file of this name is a temporary one."""
    return LEFTOVER.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove what a killed process has left of files that it was writing."""
    for path in folder.rglob(".*"):
        if is_leftover(path.name):
            remove(path)


def _put(path: Path, data: bytes, flags: int) -> None:
    handle = os.open(path, flags, 0o666)
    try:
        rest = memoryview(data)
        while rest:  # a write may take less than it was given
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system refuses, as one line that names the file."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


# reading


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FedmsError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise FedmsError(f"{path}: not valid JSON") from None


def decode_arrays(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays and plain values from a file's or a message's bytes. Not by safetensors' `safe_open`, which loses some memory with each array.

    Raises:
        SafetensorError, ValueError, KeyError, TypeError, RecursionError: that is not what these bytes are.
    """
    arrays = load_arrays(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return arrays, dict(json.loads(header["__metadata__"]["fedms"]))


def read_arrays(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_arrays` wrote; FedmsError where the file is missing, torn or altered."""
    try:
        arrays, meta = decode_arrays(path.read_bytes())
    except FileNotFoundError:
        raise FedmsError(f"{path}: there is no such file") from None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise FedmsError(f"{path}: damaged: {error}") from None
    digest = meta.pop(DIGEST, None)
    if digest is not None and digest != _digest(arrays, meta):  # files of the first version have none
        raise FedmsError(f"{path}: damaged: what it holds is not what was written")
    return arrays, meta


def _digest(arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    sha = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        sha.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


# one process at a time


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """The folder for this process alone, until it lets go or ends, however it does.

    Raises:
        FedmsError: another process holds it, or it cannot be locked.
    """
    with contextlib.ExitStack() as held:
        try:
            handle = os.open(path, os.O_RDONLY)
            held.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FedmsError(f"{path}: another process is at work in this folder") from None
        except OSError as error:
            raise StorageError(f"{path}: cannot be locked: {_reason(error)}") from None
        yield
