"""Opening a client of a finished run: for `fedms predict` and `fedms.load`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedms.config import Config
from fedms.config.sections import Device
from fedms.core.errors import ConfigError, FedmsError
from fedms.core.formatting import excerpt, printable
from fedms.federation.methods import of
from fedms.federation.personal_model import UNSCALED, PersonalModel
from fedms.model.checkpoints import MINILM_HUB_NAME, locate, looks_local
from fedms.runs.backbones import shared_backbone
from fedms.runs.client import Client
from fedms.runs.exported import export_at, open_export
from fedms.runs.folder import RunFolder
from fedms.runs.personal_files import MODEL, read_model
from fedms.runs.reading.run import read_run
from fedms.runs.text_client import TextClient
from fedms.training.ambient import own_torch_state
from fedms.training.device import resolved


@own_torch_state()
def load(
    run: str | Path,
    client: str | None = None,
    model: str | Path | None = None,
    device: Device | None = None,
) -> Client:
    """Open one client of a finished run, or an export of one; the data set is not needed.

    Args:
        run: the run folder, or the folder of an export.
        client: a name from the run, such as `client-0`. An export of one client needs none.
        model: the folder of the run's frozen model, if it has moved.
        device: where it predicts; default: the run's device, or the CPU where there is no GPU.

    Raises:
        FedmsError: the device or a finished run is not there, the run has no such client, or its model cannot
            be loaded.
    """
    if device is not None:
        resolved(device)
    if place := export_at(Path(run), client):
        return open_export(place, client, model, device or "cpu")
    folder = RunFolder(Path(run))
    finished = read_run(folder.path)
    classes, names = _classes_and_clients(folder, finished.result)
    client = _named(client, names, folder)
    path = folder.client(client).path / MODEL
    if not path.exists() and folder.config().engine.name == "flower":
        there = f"fedms predict SITE/runs/RUN --client {client}"
        raise FedmsError(f"{folder.path}: holds no personal models; they are at the sites: {there}")
    arrays, meta = read_model(folder.path, path)
    try:
        kept = bool(meta["network_kept"])
        scales = [float(scale) for scale in meta.get("evidence_scales", UNSCALED)]
        prior, boundary, whose = float(meta["prior"]), int(meta["boundary"]), str(meta.get("client", client))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise FedmsError(f"{path}: damaged: not a client's model") from None
    if whose != client:
        raise FedmsError(f"{path}: damaged: it is the model of {excerpt(whose)}")
    try:
        declared = folder.config()
        config = _with_model(declared, finished.environment, model)
        config = config if device is None else config.model_copy(update={"device": device})
        personal = PersonalModel(arrays, of(config), config, kept, scales)
        shared = shared_backbone(config, finished.environment.get("kernels"))
    except ConfigError as error:
        raise FedmsError(f"{folder.path / 'config.yaml'}: damaged: {error}") from None
    if change := folder.identity().model_change(shared.identity, config):
        raise FedmsError(f"{folder.path}: {change}")
    hub_name = _hub_name(declared.model.name, finished.environment)
    figures: Mapping[str, Any] = next(
        (each for each in finished.result["per_client"] if each.get("name") == client), {}
    )
    kind = TextClient if config.task == "text" else Client
    found = kind(client, classes, personal, shared, prior, boundary, hub_name, figures)
    if not found.fits():
        if "discriminant.precision" in arrays:
            made = "made by an earlier fedms, which kept the statistics in another form"
            raise FedmsError(f"{path}: {made}; run the experiment again")
        raise FedmsError(f"{path}: damaged: it does not fit the run's config, its model or its classes")
    return found


def _named(client: str | None, names: Sequence[str], folder: RunFolder) -> str:
    if client is not None and client in names:
        return client
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    what = "name a client" if client is None else f"no client {client!r}"
    raise FedmsError(f"{folder.path}: {what}; there are {len(names)}: {some}")


def clients_of(run: Path) -> list[str]:
    """The names of a finished run's clients. Raises FedmsError if no finished run is there."""
    return _classes_and_clients(RunFolder(run), read_run(run).result)[1]


def _classes_and_clients(folder: RunFolder, result: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the run's classes and of its clients."""
    try:
        return [*result["partition"]["classes"]], [*result["partition"]["clients"]]
    except (KeyError, TypeError):
        raise FedmsError(
            f"{folder.path / 'result.json'}: damaged: it does not say which classes and clients there are"
        ) from None


def _with_model(config: Config, environment: Mapping[str, Any], model: str | Path | None) -> Config:
    """The config with the place of its model on this machine: `model`, or the folder that the run recorded.

    Raises:
        FedmsError: no such folder is there. A name that was a folder is never looked up on the hub.
    """
    named = os.path.expanduser(config.model.name)  # noqa: PTH111 - Path raises for an unknown user
    recorded = named if Path(named).is_absolute() else environment.get("model_folder")
    place = model if model is not None else recorded
    if not isinstance(place, str | Path):
        return config  # a hub name, the embedded encoder, or a run that recorded nothing
    folder = Path(os.path.expanduser(place)).absolute()  # noqa: PTH111 - Path raises for an unknown user
    if not folder.is_dir():
        hint = "; if it has moved, name its folder with --model (model= in Python)" if model is None else ""
        raise FedmsError(f"model {printable(str(place))}: there is no such folder{hint}")
    moved = config.model.model_copy(update={"name": str(folder)})
    return config.model_copy(update={"model": moved})


def _hub_name(name: str, environment: Mapping[str, Any]) -> str | None:
    """The name of the run's model on the hub; None if it was a folder."""
    if name == "minilm":
        return MINILM_HUB_NAME
    was_folder = environment.get("model_folder") is not None or Path(locate(name)).is_dir()
    return None if was_folder or looks_local(name) else name
