from small_world import opened, settings  # noqa: F401 (fixtures)
