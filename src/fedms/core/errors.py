"""The errors a user can mend. Anything else that escapes is a bug in fedms."""

from __future__ import annotations


class FedmsError(Exception):
    """Something the user can mend: a missing file, a column that is not there. One line, exit code 1."""

    exit_code = 1


class StorageError(FedmsError):
    """A file or folder that cannot be written: a full disk, a broken one, no permission. What was there before still is."""


class ConfigError(FedmsError):
    """A wrong key, type, range or combination in the configuration. One line, exit code 2."""

    exit_code = 2
