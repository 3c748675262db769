"""Every config in examples/ is a whole experiment, and its head says how to run it."""

import importlib
import json
from pathlib import Path

import pytest

from fedms.config import load_config
from fedms.config.examples import example_names
from fedms.experiments.comparison.rows import rows

ROOT = Path(__file__).parent.parent
ALL = sorted((ROOT / "examples").rglob("*.yaml"))
ABLATIONS = [path for path in ALL if path.parent.name == "ablations"]
MINILM_BLOCKS = 6


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_it_is_checked_strictly_and_names_its_command(path):
    rows(load_config(path))  # every row a whole experiment
    head = path.read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines()) and str(path.relative_to(ROOT)) in head


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_compares_what_its_model_can_do_and_has_a_place_in_the_docs(path):
    config = load_config(path)
    compared = rows(config)
    assert len(compared) > 1
    experiments = [row.experiment(config, 0, {}) for row in compared]
    assert len({experiment.to_yaml() for experiment in experiments}) == len(experiments), (
        "two rows are the same"
    )
    named = [
        getattr(each.activation, key) for each in experiments for key in ("blocks", "blocks_local", "maximum")
    ]
    assert all(value <= MINILM_BLOCKS for value in named if isinstance(value, int))
    page = (ROOT / "docs" / "results.md").read_text()
    assert f"<!-- ablation {path.stem} -->" in page and f"<!-- end ablation {path.stem} -->" in page


def test_every_comparison_of_a_bench_can_be_begun(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    settings = importlib.import_module("results").SETTINGS
    sal = importlib.import_module("sal").ROWS
    for name, (example, keys, section) in {**settings, "sal": ("assistant", [], sal)}.items():
        config = load_config(ROOT / "examples" / f"{example}.yaml", [f"compare={json.dumps(section)}", *keys])
        experiments = [row.experiment(config, 0, {}).to_yaml() for row in rows(config)]
        assert len(set(experiments)) == len(experiments) > 1, name


def test_examples_travel_by_name():
    assert set(example_names()) == {
        path.relative_to(ROOT / "examples").with_suffix("").as_posix() for path in ALL
    }
    assert load_config("ablations/rank") == load_config(ROOT / "examples" / "ablations" / "rank.yaml")
