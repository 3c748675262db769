"""What of a finished run can go: states to resume it from, and what all clients hold alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fedms.core.errors import FedmsError
from fedms.core.files import locked, read_arrays, remove, write_arrays
from fedms.core.paths import check_no_escape
from fedms.federation.client_folder import ClientFolder
from fedms.federation.client_view import STATE
from fedms.runs.personal_files import COMMON, MODEL, OWN_SUMS, SHARED_IN, held_rows, same
from fedms.runs.reading.comparison import is_comparison
from fedms.runs.reading.run import RESULT, read_result

WORTH = 2**20
"""Bytes that must be saved at least, before what all clients hold alike is kept once."""


def runs_in(folder: Path) -> list[Path]:
    """The folder itself, or all finished runs of a comparison in it.

    Raises:
        FedmsError: it is neither, the run did not finish, or a link leads out of it.
    """
    if not folder.is_dir():
        raise FedmsError(f"{folder}: no such folder")
    check_no_escape(folder)
    if is_comparison(folder):
        return sorted(path.parent for path in folder.rglob(RESULT))
    read_result(folder)
    return [folder]


def clean_run(folder: Path) -> int:
    """As `prune`, for a run at which nobody is at work.

    Raises:
        FedmsError: the run did not finish, or another process is at work in it.
    """
    with locked(folder):
        read_result(folder)
        return prune(folder)


def prune(folder: Path) -> int:
    """Remove from a finished run what it needs no more; return the bytes freed.

    The server's checkpoints go, and all versions of clients' states but the newest, from which another run
    can start. A client's finished model, the server's state at the end of each stage, and all that a report
    reads stay. The run cannot be resumed any more, which a finished run need not be.
    """
    gone = [*(folder / "server").glob("state-*.safetensors")]
    for client in (folder / "clients").glob("*/"):
        for kind, files in ClientFolder(client).versions().items():
            gone += [*files.values()][: -1 if kind == STATE else None]
    freed = sum(path.stat().st_size for path in gone)
    for path in gone:
        remove(path)
    return freed + _share(folder)


def _share(folder: Path) -> int:
    """Keep once what the models of all clients hold alike, where that is worth it; return the bytes freed.

    Models are read one by one, since there may be thousands.
    """
    paths, place = sorted((folder / "clients").glob(f"*/{MODEL}")), folder / COMMON
    left = [path for path in paths if SHARED_IN not in read_arrays(path)[1]]
    if not left:
        return 0
    if len(left) < len(paths) and place.exists():  # it was begun, and not ended
        common = read_arrays(place)[0]
    else:
        common = _alike(left)
        if _bytes(common) * (len(left) - 1) < WORTH:
            return 0
        write_arrays(place, common, {})
    freed = 0
    for path in left:
        (arrays, meta), before = read_arrays(path), path.stat().st_size
        own = {name: array for name, array in arrays.items() if not same(common.get(name), array)}
        if OWN_SUMS in own:
            own[OWN_SUMS] = held_rows(arrays)
        write_arrays(path, own, {**meta, SHARED_IN: sorted(arrays.keys() - own.keys())})
        freed += before - path.stat().st_size
    return freed - place.stat().st_size


def _alike(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The arrays that all these models have with the same bits."""
    common = read_arrays(paths[0])[0]
    for path in paths[1:]:
        arrays = read_arrays(path)[0]
        common = {name: array for name, array in common.items() if same(arrays.get(name), array)}
        if _bytes(common) * (len(paths) - 1) < WORTH:
            break
    return common


def _bytes(arrays: Mapping[str, Tensor]) -> int:
    return sum(array.nbytes for array in arrays.values())
