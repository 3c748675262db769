"""One client of a finished run, on new input: what `fedms predict` prints and `fedms.load` gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedms.core.errors import ConfigError, FedmsError
from fedms.core.files import read_arrays
from fedms.core.formatting import plain
from fedms.data.federated import Samples
from fedms.data.images import told, upright
from fedms.data.sources import Dataset
from fedms.federation.methods import of
from fedms.federation.personal_model import UNSCALED, PersonalModel
from fedms.federation.prediction import ClientOutputs, judge
from fedms.federation.recipe import recipe_for
from fedms.model.backbone import Backbone
from fedms.model.checkpoints import load_backbone
from fedms.runs.folder import RunFolder
from fedms.runs.reading.run import read_run
from fedms.training.inputs import inputs_for
from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import Runner

Input = str | Path | Image.Image
"""A text; or an image, as a file or decoded."""
MEMORY = 256 * 2**20
"""Bytes for hidden states below the experts, so that both experts share one pass; beyond them each computes its own."""


@dataclass(frozen=True)
class Prediction:
    """What a client says of one input."""

    label: str
    """The likeliest class."""
    probability: float
    """Of that class."""
    probabilities: dict[str, float]
    """Of every class, the likeliest first."""
    local_weight: float | None
    """g_L, how much the local expert counts; None where the method mixes nothing."""
    global_weight: float | None
    """g_G = 1 - g_L"""


class Client:
    """One client's finished model.

    Attributes:
        name: the client.
        classes: names of the classes, in the order of the heads' rows.
        kind: `text` or `image`, what it reads.
        prior: how often it meets its own kind of data, unless `predict` is told otherwise.
        personal: its experts and its gate.
        boundary: the lowest block that carries a pair.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        personal: PersonalModel,
        backbone: Backbone,
        prior: float,
        boundary: int,
    ) -> None:
        self.name = name
        self.classes = tuple(classes)
        self.personal = personal
        self.backbone = backbone
        self.prior = prior
        self.boundary = boundary

    @property
    def kind(self) -> str:
        return self.backbone.kind

    def predict(self, inputs: Sequence[Input], prior: float | None = None) -> list[Prediction]:
        """Classify texts, or images (files or decoded), with the code that the experiment was tested with.

        Args:
            inputs: the samples; results come in their order.
            prior: how often this client meets its own kind of data, from 0 (the global expert alone) to 1 (the local one);
                default: as the run had it.

        Raises:
            ConfigError: a prior outside [0, 1], or for a method that has none.
            FedmsError: an input that the model does not read, or an image that cannot be decoded.
        """
        if isinstance(inputs, str | Path | Image.Image):
            raise TypeError("predict takes a list of inputs; for one, write predict([x])")
        prior = self._checked(prior)
        if not inputs:
            return []
        judged = self.judge(inputs)
        found = judged.log_probabilities(prior)
        weight = judged.local_weight(prior)
        weights: list[float | None] = [None] * len(inputs) if weight is None else weight.tolist()
        return [self._prediction(row, weight) for row, weight in zip(found, weights, strict=True)]

    def judge(self, inputs: Sequence[Input]) -> ClientOutputs:
        """What the client's parts say of the inputs; predictions at any prior follow without another pass."""
        self._check_kind(inputs)
        none = np.zeros(len(inputs), dtype=np.int64)
        dataset = Dataset(
            self.backbone.kind,
            Pictures(inputs) if self.kind == "image" else list(inputs),
            none,
            self.classes,
            {},
            None,
        )
        arriving = inputs_for(dataset, self.backbone, self.personal.config.model)
        # the folder is never used: nothing may go to disk
        cache = PrefixCache(self.backbone, arriving, MEMORY, disk=0, folder=Path())
        samples = Samples("new", np.arange(len(inputs)), torch.from_numpy(none))
        return judge(self.personal, Runner(self.backbone, cache), samples, self.boundary)

    def fits(self) -> bool:
        """Whether its arrays suit each other and the backbone: it says something of a sample."""
        sample: Input = "a" if self.kind == "text" else Image.new("RGB", (64, 64))
        if not (0 <= self.prior <= 1 and 0 <= self.boundary <= self.backbone.depth):
            return False
        try:
            found = self.judge([sample]).log_probabilities(self.prior)
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            AssertionError,
            RuntimeError,
        ):  # as torch and dicts say it
            return False
        return found.shape == (1, len(self.classes)) and bool(found.exp().sum().isclose(torch.ones(())))

    def _checked(self, prior: float | None) -> float:
        if prior is None:
            return self.prior
        recipe = recipe_for(self.personal.config, self.personal.method)
        if not recipe.has_frontier:
            raise ConfigError(
                f"prior: has no meaning for method {recipe.method.name}, whose predictions do not move with it"
            )
        if not 0 <= prior <= 1:
            raise ConfigError(f"prior: must be from 0 to 1, not {prior}")
        return float(prior)

    def _check_kind(self, inputs: Sequence[Input]) -> None:
        known = str | Path | Image.Image if self.kind == "image" else str
        for number, each in enumerate(inputs, 1):
            if not isinstance(each, known):
                raise FedmsError(f"input {number}: the model reads {self.kind}s, not {type(each).__name__}")

    def _prediction(self, log_probabilities: Tensor, weight: float | None) -> Prediction:
        # ordered before exp, which can make equal what is not; of equals the first counts, as in the experiment
        order = log_probabilities.argsort(descending=True, stable=True).tolist()
        values = log_probabilities.exp().tolist()
        probabilities = {self.classes[index]: values[index] for index in order}
        label = self.classes[order[0]]
        return Prediction(
            label, probabilities[label], probabilities, weight, None if weight is None else 1 - weight
        )


class Pictures(Sequence[Any]):
    """Images decoded when asked for, in RGB and upright, so that memory holds one batch of them."""

    def __init__(self, given: Sequence[Input]) -> None:
        self._given = given

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, index: Any) -> Any:
        """One RGB image.

        Raises:
            FedmsError: the image cannot be decoded.
        """
        given = self._given[index]
        if isinstance(given, Image.Image):
            return given.convert("RGB")
        with told(str(given)):
            return upright(Image.open(given))


def load(run: str | Path, client: str) -> Client:
    """Open one client of a finished run; the data set is not needed.

    Args:
        run: the run folder.
        client: a name from the run, such as `client-0`.

    Raises:
        FedmsError: no finished run is there, it has no such client, or its model cannot be loaded.
    """
    folder = RunFolder(Path(run))
    result = read_run(folder.path).result
    try:
        classes, names = result["partition"]["classes"], result["partition"]["clients"]
    except (KeyError, TypeError):
        raise FedmsError(
            f"{folder.path / 'result.json'}: damaged: it does not say which classes and clients there are"
        ) from None
    if client not in names:
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise FedmsError(f"{folder.path}: no client {client!r}; there are {len(names)}: {some}")
    path = folder.client(client).path / "model.safetensors"
    arrays, meta = read_arrays(path)
    try:
        kept, scales = (
            bool(meta["network_kept"]),
            [float(scale) for scale in meta.get("evidence_scales", UNSCALED)],
        )
        prior, boundary, whose = float(meta["prior"]), int(meta["boundary"]), str(meta.get("client", client))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise FedmsError(f"{path}: damaged: not a client's model") from None
    if whose != client:
        raise FedmsError(f"{path}: damaged: it is the model of {plain(whose)}")
    try:
        config = folder.config()
        personal = PersonalModel(arrays, of(config), config, kept, scales)
        # a run made on an accelerator can be used without one
        device = config.device if torch.cuda.is_available() else "cpu"
        backbone = load_backbone(config.model, config.lora).to_device(
            device, getattr(torch, config.precision)
        )
    except ConfigError as error:
        raise FedmsError(f"{folder.path / 'config.yaml'}: damaged: {error}") from None
    found = Client(client, classes, personal, backbone, prior, boundary)
    if not found.fits():
        raise FedmsError(f"{path}: damaged: it does not fit the run's config, its model or its classes")
    return found
