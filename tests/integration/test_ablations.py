"""The script of the ablations at tiny size: one compares rows, one sweeps the partition."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedms.config import Config
from fedms.runs.reading.comparison import Comparison, SeedRun

pytestmark = pytest.mark.integration


@pytest.fixture
def ablations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    return importlib.import_module("ablations")


@pytest.fixture
def small(text_model: Path, corpus: Path) -> list[str]:
    keys = {
        "model.name": text_model,
        "data.source": corpus,
        "partition.clients": 4,
        "federation.cohort": 2,
        "compare.seeds": "[0]",
    }
    keys |= {"federation.rounds_global": 1, "federation.rounds_local": 1, "engine.workers": 1}
    return [f"{key}={value}" for key, value in keys.items()]


def test_an_ablation_is_a_comparison_and_a_table(
    ablations: ModuleType, small: list[str], tmp_path: Path
) -> None:
    ablations.perform("gate-share", tmp_path, small)
    table = ablations.section(
        "gate-share", {"gate-share": ablations.read_comparison(tmp_path / "gate-share")}
    )
    headline, curves = table.split("\n\n")
    for lines in (headline.splitlines(), curves.splitlines()):
        assert [line.split("|")[1].split(" (")[0].strip() for line in lines[2:]] == [
            "fedms",
            "share none",
            "share all",
        ]


def test_bytes_of_rounds_leave_statistics_out(ablations: ModuleType, tmp_path: Path) -> None:
    def row(name: str, *sent: int) -> Any:
        lines = [{"rounds": 0, "uplink_bytes": 9 * 10**6}]
        lines += [{"rounds": len(sent), "uplink_bytes": each} for each in sent]
        return ablations.RowResults(name, {}, [SeedRun(0, "", lines, {})])

    rows = [row("fedms", 3 * 10**6, 10**6), row("int8", 750_000, 250_000)]
    table = ablations.bytes_of_rounds(Comparison(tmp_path, {}, {}, rows, rows[0], [0], {}))
    assert [line.split("|")[1:4] for line in table.splitlines()[2:]] == [
        [" fedms ", " 4.00 ", " 1.00 "],
        [" int8 ", " 1.00 ", " 4.00 "],
    ]


def test_a_sweep_is_a_comparison_and_a_table_for_every_value(
    ablations: ModuleType, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ablations.SWEPT, "alpha", ("partition.alpha", ("0.5", "1.0")))
    ablations.perform("alpha", tmp_path, [*small, "compare.methods=[statistics]"])
    made = {folder: ablations.read_comparison(tmp_path / folder) for folder in ablations.settings("alpha")}
    assert [comparison.config["partition"]["alpha"] for comparison in made.values()] == [0.5, 1.0]
    text = ablations.section("alpha", made)
    assert (
        text.index("`partition.alpha` 0.5:") < text.index("`partition.alpha` 1.0:")
        and text.count("| statistics |") == 2
    )
    assert "at prior" not in text, "one row alone has nothing beside it"


def test_what_another_ablation_has_run_is_taken_over(
    ablations: ModuleType, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablations.perform("gate-share", tmp_path, small)
    ran: list[str] = []
    run = ablations.compare.__globals__["experiment"].run

    def counted(config: Config, out: Path, *rest: Any, **more: Any) -> Any:
        ran.append(out.name)
        return run(config, out, *rest, **more)

    monkeypatch.setattr("fedms.experiments.experiment.run", counted)
    ablations.perform("gate-objective", tmp_path, small)
    assert ran == ["pfl-moe-0", "likelihood-0"]
    one, other = (
        ablations.read_comparison(tmp_path / name).rows[0].record["mean"]
        for name in ("gate-share", "gate-objective")
    )
    assert one == other
    ran.clear()
    ablations.perform("gate-features", tmp_path, [*small, "federation.rounds_local=2"])
    assert ran == ["fedms-0", "backbone features-0"], "what differs in a key is another run"
