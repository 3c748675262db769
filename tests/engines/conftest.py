"""A config of three clients with a tiny BERT, for the engines."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedms.config import Config, load_config
from small_world import ENDINGS


@pytest.fixture(scope="session")
def settings(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """The config, with overrides as on the command line."""
    corpus: Path = tmp_path_factory.mktemp("corpus") / "texts.csv"
    endings = (*ENDINGS[:-1], "off")
    corpus.write_text(
        "text,label\n"
        + "".join(f"{start} {end},{start}\n" for start in ("light", "music", "turn") for end in endings * 2)
    )
    base = {
        "model": {"name": str(checkpoint("bert")), "max_length": 12},
        "data": {"source": str(corpus)},
        "partition": {"clients": 3, "alpha": 1.0, "min_samples": 5},
        "federation": {"cohort": 3, "rounds_global": 2, "rounds_local": 1},
        "lora": {"rank": 2},
        "head": {"kind": "linear"},
    }
    return lambda *overrides: load_config(base, overrides)
