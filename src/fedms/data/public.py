"""Which public evaluation file it is: everybody who holds a copy must hold the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedms.config import Config
from fedms.core.errors import FedmsError


def check_public(source: str, wanted: str | None) -> None:
    """Raise FedmsError if this is another file than the one of that SHA-256, if one is named."""
    if wanted is not None and public_digest(source) != wanted:
        raise FedmsError(f"evaluation.public: {source} is not the file of evaluation.public_sha256")


def public_digest(source: str) -> str:
    """The SHA-256 of a public file.

    Raises:
        FedmsError: it cannot be read.
    """
    try:
        return hashlib.sha256(Path(source).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise FedmsError(f"evaluation.public: {source}: cannot be read: {error.strerror}") from None


def with_public_digest(config: Config) -> Config:
    """The config with the SHA-256 of its public file, which says what accuracy_global was measured on.

    Raises:
        FedmsError: the file cannot be read, and the config does not name its SHA-256.
    """
    judged = config.evaluation
    if judged.public is None or judged.public_sha256:
        return config
    found = public_digest(judged.public)
    return config.model_copy(update={"evaluation": judged.model_copy(update={"public_sha256": found})})
