"""Server and clients without an engine."""

from small_world import federation, opened, settings  # noqa: F401 (fixtures)
