"""The config of an experiment: its keys, and how it is read and checked."""

from fedms.config.schema import Config, changed, load_config

__all__ = ["Config", "changed", "load_config"]
