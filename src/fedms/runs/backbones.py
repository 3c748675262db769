"""The frozen backbones of this process, one for all clients that were loaded from the same model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from fedms.config import Config
from fedms.core.errors import FedmsError
from fedms.federation.identity import ModelIdentity
from fedms.model.backbone import Backbone
from fedms.model.checkpoints import load_backbone, locate
from fedms.model.kernels import has_onednn
from fedms.model.vocabulary import give_words
from fedms.training.ambient import own_torch_state
from fedms.training.device import resolved


class SharedBackbone:
    """A backbone that several clients and threads use in turn.

    Attributes:
        identity: its fingerprint, which tells whether it is the model of a run.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.identity = ModelIdentity.of(backbone)
        self._turn = threading.Lock()

    @contextmanager
    def exclusive(self) -> Iterator[Backbone]:
        """The backbone for this thread alone. Its layers hold the pairs of one expert at a time."""
        with self._turn, own_torch_state():
            yield self.backbone


_backbones: WeakValueDictionary[object, SharedBackbone] = WeakValueDictionary()
"""Those in use; a backbone goes with its last client."""
_loading = threading.Lock()


def shared_backbone(config: Config, kernel: str | None = None) -> SharedBackbone:
    """The backbone that a run's config names. Clients share it while the model's files stay as they are.

    A run that was made on a GPU can be used without one, and one that was made with oneDNN's `kernel` where
    there is none.

    Raises:
        FedmsError: the model cannot be loaded.
        ConfigError: a LoRA target is not there.
    """
    try:
        device = resolved(config.device)
    except FedmsError:
        device = "cpu"
    dtype = getattr(torch, config.precision)
    onednn = kernel == "onednn" and has_onednn() and (device, dtype) == ("cpu", torch.float32)
    with _loading:  # a second thread that asks for the same backbone waits for the first one's
        model = config.model
        key = (
            *_files(model.name),
            config.lora.targets,
            model.blocks,
            model.pooling,
            model.attention,
            config.precision,
            device,
            onednn,
            config.task,
        )
        found = _backbones.get(key)
        if found is None:
            with own_torch_state():
                backbone = load_backbone(model, config.lora, dtype)
                if config.task == "text":
                    give_words(backbone)
                backbone.to_device(device, dtype)
                backbone.use("onednn" if onednn else "torch")
            found = _backbones[key] = SharedBackbone(backbone)
        return found


def _files(name: str) -> tuple[object, ...]:
    """Where a model lies, with name, size and time of each of its files: they tell whether it has changed."""
    folder = _folder(name)
    if folder is None:
        return (name,)  # to load it fails, or downloads it
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return (str(folder), *((file, each.st_size, each.st_mtime_ns, each.st_ino) for file, each in stats))


def _folder(name: str) -> Path | None:
    """The model's folder on this machine; for a hub name, the folder of the cached snapshot."""
    from transformers.utils import cached_file

    source = locate(name)
    if Path(source).is_dir():
        return Path(source).resolve()
    with suppress(Exception):  # no such model, or no connection: whoever loads it gets the reason
        config = cached_file(source, "config.json")
        return None if config is None else Path(config).parent
    return None
