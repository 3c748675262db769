"""Errors that a user can correct. Any other exception from fedms is a bug in fedms."""

from __future__ import annotations


class FedmsError(Exception):
    """An error that the user can correct, such as a missing file or column. One line, exit code 1."""

    exit_code = 1


class StorageError(FedmsError):
    """A file or folder cannot be written, such as on a full disk. Earlier content stays."""


class ConfigError(FedmsError):
    """A wrong key, type, range or combination in the configuration. One line, exit code 2."""

    exit_code = 2
