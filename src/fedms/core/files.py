"""Files that are written completely or not at all: safetensors and JSON, never pickle.

Every write is a call of this module's `os`. These calls are the points at which a process, a disk or the
power can fail, so tests fail them one by one.
"""

from __future__ import annotations

import contextlib
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

TEMPORARY_NAME = re.compile(r"\..+\.\d+\.\d+")
"""Names of temporary files. Those of a killed process may be removed."""
FOLDERS_OPEN = os.name != "nt"
"""Whether a folder can be opened as a file, to sync or lock it. Windows cannot."""
DIGEST_KEY = "sha256"
"""Key of the digest among the values of an arrays file."""


# writing


def write_bytes(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file completely or not at all: temporary file, fsync, rename, fsync of the folder.

    A new file has this mode, less the process's umask.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with _errors_name(path):
        try:
            _put(temporary, data, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            os.replace(temporary, path)  # noqa: PTH105 - tests watch every change of a file in `os`
        except BaseException:
            remove(temporary)
            raise
        _sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append a line. After a failure the last line may be incomplete; then it lacks its line break."""
    with _errors_name(path):
        new = not path.exists()
        _put(path, (line + "\n").encode(), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if new:
            _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON. Raises ValueError for NaN and infinity."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_arrays(
    path: Path, arrays: Mapping[str, Tensor], meta: Mapping[str, Any], mode: int = 0o666
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Write arrays and JSON values into one safetensors file, with a digest of both.

    Returns:
        The arrays and values that `read_arrays` will return.
    """
    held = storable(arrays)
    values = json.loads(json.dumps(dict(meta)))
    write_bytes(path, encode_arrays(held, {**values, DIGEST_KEY: _digest(held, values)}), mode)
    return held, values


def storable(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays as they can be stored: without gradients, on the CPU, contiguous."""
    return {name: array.detach().cpu().contiguous() for name, array in arrays.items()}


def encode_arrays(arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """Storable arrays and JSON values as safetensors bytes.

    The serializer gets each array's address directly. `safetensors.torch.save` gives the same bytes by way of
    ctypes and NumPy, which for a small client takes longer than the serialization.
    """
    specs = {name: _spec(array) for name, array in arrays.items()}
    data: bytes = serialize(specs, metadata={"fedms": json.dumps(meta)})
    return data


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype, such as `float32`."""
    return str(dtype).removeprefix("torch.")


def _spec(array: Tensor) -> TensorSpec:
    return TensorSpec(
        dtype=dtype_name(array.dtype), shape=array.shape, data_ptr=array.data_ptr(), data_len=array.nbytes
    )


def make_folder(path: Path) -> list[Path]:
    """Create a folder and its missing parents, durably.

    Returns:
        The folders that were created, outermost first.

    Raises:
        StorageError: a folder cannot be created; none is left behind then.
    """
    made = []
    try:
        for each in reversed([each for each in (path, *path.parents) if not each.exists()]):
            with contextlib.suppress(FileExistsError):  # another worker created it in the meantime
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
    """Remove the folders that `make_folder` created, as far as they are empty."""
    for each in reversed(made):
        with contextlib.suppress(OSError):
            os.rmdir(each)  # noqa: PTH106


def remove(path: Path) -> None:
    """Remove a file if it is there. A file that cannot be removed does no harm, so errors are ignored."""
    with contextlib.suppress(OSError):
        os.unlink(path)  # noqa: PTH108


def is_leftover(name: str) -> bool:
    """Whether this is the name of a temporary file."""
    return TEMPORARY_NAME.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove the temporary files of a killed process."""
    for path in folder.rglob(".*"):
        if is_leftover(path.name):
            remove(path)


def _put(path: Path, data: bytes, flags: int, mode: int = 0o666) -> None:
    handle = os.open(path, flags, mode)
    try:
        rest = memoryview(data)
        while rest:  # one call may write only a part
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    if not FOLDERS_OPEN:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Raise the system's errors as a StorageError with one line that names the file."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


# reading


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises FedmsError if it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FedmsError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise FedmsError(f"{path}: not valid JSON") from None


def decode_arrays(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays and values from the bytes of a file or a message.

    This does not use safetensors' `safe_open`, which leaks memory with each array.

    Raises:
        SafetensorError, ValueError, KeyError, TypeError, RecursionError: the bytes hold something else.
    """
    arrays = load_arrays(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return arrays, dict(json.loads(header["__metadata__"]["fedms"]))


def read_arrays(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arrays and values that `write_arrays` wrote.

    Raises:
        FedmsError: the file is missing, incomplete or altered.
    """
    try:
        arrays, meta = decode_arrays(path.read_bytes())
    except FileNotFoundError:
        raise FedmsError(f"{path}: there is no such file") from None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise FedmsError(f"{path}: damaged: {error}") from None
    digest = meta.pop(DIGEST_KEY, None)
    if digest != _digest(arrays, meta):
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
    """Lock the folder for this process, until the context or the process ends.

    Raises:
        FedmsError: another process holds the lock, or the folder cannot be locked.
    """
    with contextlib.ExitStack() as held:
        try:
            if not FOLDERS_OPEN:
                _lock_beside(path, held)
            else:
                import fcntl

                handle = os.open(path, os.O_RDONLY)
                held.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, TimeoutError):
            raise FedmsError(f"{path}: another process is at work in this folder") from None
        except OSError as error:
            raise StorageError(f"{path}: cannot be locked: {_reason(error)}") from None
        yield


def _lock_beside(path: Path, held: contextlib.ExitStack) -> None:
    """Lock a folder by a file beside it, which cannot be opened. TimeoutError if it is held."""
    from filelock import FileLock

    held.enter_context(FileLock(path.with_name(f".{path.name}.lock"), timeout=0))
