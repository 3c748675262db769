"""Names that a config key accepts. A room above `config` adds its own: `config` imports none of them."""

from __future__ import annotations

from collections.abc import Iterator

from fedms.core.errors import ConfigError
from fedms.core.formatting import excerpt


class Names:
    """The names that one config key accepts, in the order in which they were added."""

    def __init__(self, key: str, *names: str) -> None:
        self.key = key
        self._names = list(names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __str__(self) -> str:
        """`'a', 'b' or 'c'`, for a message."""
        *others, last = map(repr, self._names)
        return f"{', '.join(others)} or {last}" if others else last

    def add(self, name: str) -> None:
        """Accept one more name.

        Raises:
            ConfigError: it is there already.
        """
        if name in self._names:
            raise ConfigError(f"{self.key}: the name {excerpt(repr(name))} is taken already")
        self._names.append(name)

    def remove(self, name: str) -> None:
        """Accept this name no longer."""
        self._names.remove(name)

    def check(self, name: str) -> None:
        """Raise ConfigError unless this is one of the names."""
        if name not in self._names:
            raise ConfigError(f"{self.key}: input should be {self}, not {excerpt(repr(name))}")
