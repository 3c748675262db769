"""What of a finished run can go: states from which it could have been resumed."""

from __future__ import annotations

from pathlib import Path

from fedms.core.errors import FedmsError
from fedms.core.files import locked, remove
from fedms.core.paths import check_no_escape
from fedms.federation.client_folder import ClientFolder
from fedms.runs.reading.comparison import is_comparison
from fedms.runs.reading.run import RESULT, read_result


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
    """Remove the server's checkpoints and the versions of clients' states; return the bytes freed.

    A client's finished model (`model.safetensors`), the server's state at the end of each stage, and all
    that a report reads stay. The run cannot be resumed any more, which a finished run need not be.

    Raises:
        FedmsError: the run did not finish, or another process is at work in it.
    """
    with locked(folder):
        read_result(folder)
        gone = [*(folder / "server").glob("state-*.safetensors")]
        for client in (folder / "clients").glob("*/"):
            gone += [path for files in ClientFolder(client).versions().values() for path in files.values()]
        freed = sum(path.stat().st_size for path in gone)
        for path in gone:
            remove(path)
    return freed
