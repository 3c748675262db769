"""The settings of a site: what it takes part with, and nothing of it comes from the server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from fedms.config.data import DataConfig
from fedms.config.overrides import first_wrong, tuples
from fedms.config.sections import CacheConfig, Device, Section
from fedms.config.yaml import read_yaml
from fedms.core.errors import ConfigError
from fedms.core.paths import is_name


class SiteConfig(Section):
    """One site."""

    name: str
    """Name of the client, in results and folders."""
    folder: str
    """Folder in which the site keeps everything; only its owner can read it."""
    data: DataConfig
    """The site's samples: a file, or a folder of `train`, `validation` and `test` (README.md, rule `files`).
    A split that is missing is cut by the run's seed and shares."""
    public: str | None = None
    """The site's copy of the public evaluation file."""
    models: tuple[str, ...] = Field(("minilm",), min_length=1)
    """Models that runs may use: `minilm`, names on the hub, or local folders. A run's model is found among
    them by its fingerprint; no other is ever loaded."""
    plugins: tuple[str, ...] = ()
    """Python modules that runs may name in their `plugins`."""
    device: Device = "cpu"
    """Device of model and data."""
    cache: CacheConfig = CacheConfig()
    """Kept outputs of the frozen prefix."""
    capacity: int | None = Field(None, ge=1)
    """The most blocks that this site trains; default: as the run says."""
    say_counts: bool = True
    """Whether the server is told how many training samples of each class there are here; never in a run with
    differential privacy."""
    epsilon: float | None = Field(None, gt=0)
    """The most that `privacy.epsilon` of a run may be, with noise that protects; other runs get no answer.
    Default: any run is answered, private or not."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not is_name(value):
            raise PydanticCustomError("name", "Input should be a name that a folder can have")
        return value


def load_site(file: Path | None, given: Mapping[str, Any]) -> SiteConfig:
    """The settings in a site's YAML file, if any, with those of the command line, which come first.

    Raises:
        FedmsError: the file cannot be read.
        ConfigError: a wrong key, type or range.
    """
    values = dict(read_yaml(file)) if file is not None else {}
    values |= {key: value for key, value in given.items() if value is not None and key != "data"}
    if given.get("data") is not None:
        values["data"] = {**(values.get("data") or {}), "source": given["data"]}
    try:
        return SiteConfig.model_validate(tuples(values))
    except ValidationError as error:
        raise ConfigError(first_wrong(error, SiteConfig)) from None
