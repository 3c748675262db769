"""The scripts in bench/ that measure whole processes: their arithmetic, and small runs of them."""

from __future__ import annotations

import csv
import importlib
import json
import os
import random
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedms.config import load_config
from fedms.core.errors import FedmsError
from fedms.data import sources
from fedms.federation.world import open_world

pytestmark = pytest.mark.integration

Bench = Callable[[str], Any]
"""Imports a module of bench/ by name."""
ROOT = Path(__file__).parents[2]
FLOWER = Path(os.environ.get("FEDMS_FLOWER_PYTHON", ROOT / ".venv-flower" / "bin" / "python"))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module


@pytest.fixture
def versus(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "flower"))
    return bench("versus_flower")


@pytest.fixture
def halves(corpus: Path, tmp_path: Path) -> Path:
    """The made-up sentences as a folder with a test split."""
    lines = corpus.read_text().splitlines()
    header, rows = lines[0], lines[1:]
    random.Random(0).shuffle(rows)
    folder = tmp_path / "source"
    folder.mkdir()
    for split, part in (("train", rows[:100]), ("test", rows[100:])):
        (folder / f"{split}.csv").write_text("\n".join([header, *part]) + "\n")
    return folder


@pytest.fixture
def common(versus: Any, halves: Path, text_model: Path, tmp_path: Path) -> dict[str, Any]:
    """What our programs are told in a small comparison, whose data are already copied."""
    folder = tmp_path / "work"
    folder.mkdir()
    versus.copy_data(str(halves), None, 0, folder)
    common = versus.settings(0, folder, str(text_model), 4, 2, 2)
    common["partition"]["alpha"] = 0.5
    return {**common, "engine": {"workers": 1}}


def test_the_copied_data_are_the_rows_of_fedms_in_their_order(
    versus: Any, halves: Path, tmp_path: Path
) -> None:
    versus.copy_data(str(halves), 30, 3, tmp_path)
    limited = sources.load(load_config({"data": {"source": str(halves), "limit": 30}}).data, 3)
    read = sources.load(load_config({"data": {"source": str(tmp_path)}}).data, 0)
    assert list(read.inputs) == list(limited.inputs) and len(read.inputs) == 60
    assert (read.labels == limited.labels).all() and read.class_names == limited.class_names
    assert read.is_test is not None and limited.is_test is not None
    assert (read.is_test == limited.is_test).all()
    with (tmp_path / "train.csv").open(newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == list(limited.inputs)[:30]


def test_data_without_a_test_split_are_refused(versus: Any, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(FedmsError, match="has no test split"):
        versus.copy_data(str(corpus), None, 0, tmp_path)


def test_the_plan_is_what_a_run_of_fedms_does(versus: Any, common: dict[str, Any], tmp_path: Path) -> None:
    """The plan has the rows, cohorts and samples of the runs, and both fedms programs end with one model."""
    world = open_world(load_config(versus.fedms_config(common, versus.SAME_WORK)))
    planned = versus.plan(world)
    names = list(world.clients)
    assert all(
        rows == world.clients[name].train.tolist()
        for name, rows in zip(names, planned["clients"], strict=True)
    )
    assert sorted(np.concatenate([client.test for client in world.partition.clients])) == list(
        range(100, 144)
    )  # so: the whole test split
    for program in (versus.SAME_WORK, versus.SPARSE):
        config = versus.fedms_config(common, program)
        row = versus.run_fedms(program, tmp_path, config, planned)
        assert row.samples == sum(
            len(planned["clients"][client]) for cohort in planned["cohorts"] for client in cohort
        )
        assert 0 < row.accuracy <= 1 and row.accuracy * 44 == pytest.approx(
            round(row.accuracy * 44), abs=1e-4
        )  # of the whole split
        assert row.peak_bytes > 50e6 and row.seconds > 0 and row.processor_seconds > 0
    out = tmp_path / "again"
    versus.measured(
        [sys.executable, "-m", "fedms.cli", "run", tmp_path / "config.json", "--quiet", "--out", out], 300
    )
    asked = [
        line["cohort"]
        for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        if line["stage"] == "global"
    ]
    assert asked == [[names[client] for client in cohort] for cohort in planned["cohorts"]]


def test_flower_does_the_same_work(versus: Any, common: dict[str, Any], tmp_path: Path) -> None:
    if (
        subprocess.run([FLOWER, "-c", "import flwr, ray, peft"], capture_output=True).returncode
        if FLOWER.exists()
        else True
    ):
        pytest.skip(
            f"no Flower at {FLOWER}; docs/performance.md says how to install it, "
            "FEDMS_FLOWER_PYTHON names another interpreter"
        )
    world = open_world(load_config(versus.fedms_config(common, versus.SAME_WORK)))
    planned = versus.plan(world)
    versions: dict[str, str] = {}
    row = versus.run_flower(FLOWER, tmp_path, versus.work(world.config, planned, 1), 0, versions)
    assert row.samples == sum(
        len(planned["clients"][client]) for cohort in planned["cohorts"] for client in cohort
    )
    assert 0 < row.accuracy <= 1 and versions["flwr"]


def test_the_last_line_is_read_whatever_stands_before_it(versus: Any) -> None:
    assert versus.last_line('INFO: {"a": 2}\n\n{"a": 1}\n\n') == {"a": 1}
    for output in ("", "\n", '{"a": 1}\nended', '{"a": 1}\n[1]'):
        with pytest.raises(FedmsError, match="no JSON object"):
            versus.last_line(output)


def test_only_one_model_has_one_accuracy(versus: Any) -> None:
    clients = [
        {"name": name, "accuracy_local": own, "accuracy_global": 0.5}
        for name, own in (("b", 0.25), ("a", 1.0))
    ]
    assert versus.shared_accuracy({"method": "fedavg", "per_client": clients}, {"a": 2, "b": 4}) == 0.5
    clients[0]["accuracy_global"] = 0.25
    with pytest.raises(FedmsError, match="differ"):
        versus.shared_accuracy({"method": "local", "per_client": clients}, {"a": 2, "b": 4})


def test_ratios_are_by_seed_and_their_median(versus: Any) -> None:
    def row(program: str, seed: int, seconds: float, accuracy: float, peak: int) -> Any:
        return versus.Row(program, seed, seconds, seconds / 2, accuracy, 1000, peak, 0.0)

    rows = [row(versus.FLOWER, seed, 100.0 * (seed + 1), 0.7, 3000) for seed in range(3)]
    rows += [
        row(versus.SAME_WORK, seed, seconds, 0.75, 1500) for seed, seconds in enumerate((50.0, 20.0, 60.0))
    ]  # 2, 10, 5
    rows += [
        row(versus.SPARSE, seed, 10.0, accuracy, 1000) for seed, accuracy in enumerate((0.7, 0.68, 0.66))
    ]  # 10, 20, 30
    found = versus.summary(rows[::-1])
    assert (found["same_work_ratio"], found["same_work_ratio_range"]) == (5, [2, 10])
    assert (found["wall_time_ratio"], found["wall_time_ratio_range"]) == (20, [10, 30])
    assert (found["accuracy_difference"], found["accuracy_difference_same_work"]) == (-0.02, 0.05)
    assert (
        found["same_work_memory_ratio"],
        found["wall_time_memory_ratio"],
        found["same_work_processor_ratio"],
    ) == (2, 3, 5)
    text = versus.table(rows, found)
    assert (
        "| fedms, sparsely activated | 10 | 20.0 (10.0 … 30.0) | 0.680 ± 0.020 | 0.0 |" in text
        and "1000 samples" in text
    )


def test_a_process_is_measured_with_all_that_it_starts(bench: Bench, tmp_path: Path) -> None:
    """A child that outlives its parent, in a session of its own, counts and is ended."""
    measure = bench("common.measure")
    child = "import time; held = bytearray(b'x') * 150_000_000; print('ready', flush=True); time.sleep(100)"
    parent = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
end = time.process_time() + 0.3
while time.process_time() < end: pass
time.sleep(3)
print(child.pid)
"""
    took = measure.measured([sys.executable, "-c", parent], 60)
    assert took.peak_bytes > 150e6 and took.seconds > 1 and took.processor_seconds > 0.25
    deadline = time.monotonic() + 20
    while Path(f"/proc/{took.output.strip()}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{took.output.strip()}").exists()


def test_who_ends_the_script_ends_what_it_measures(bench: Bench, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    child = (
        f"import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(100)"
    )
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'bench')!r}); from common import measure; "
        f"measure.measured([sys.executable, '-c', {child!r}], 90)"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while not (told.exists() and told.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 143
    assert not Path(f"/proc/{told.read_text()}").exists()


def test_a_process_that_fails_or_does_not_end_is_one_error(bench: Bench) -> None:
    measure = bench("common.measure")
    with pytest.raises(FedmsError, match=r"(?s)code 3.*what went wrong"):
        measure.measured(
            [sys.executable, "-c", "import sys; print('what went wrong', file=sys.stderr); sys.exit(3)"], 60
        )
    with pytest.raises(FedmsError, match="not done after 1 seconds"):
        measure.measured([sys.executable, "-c", "import time; time.sleep(100)"], 1)


def test_a_small_fleet_is_measured(bench: Bench, tmp_path: Path) -> None:
    fleet = bench("fleet")
    given = Namespace(clients=[4], cohorts=[2], rounds=2, workers=1, model=None)
    (found,) = fleet.measure_all(given, tmp_path)
    assert (found.clients, found.cohort) == (4, 2)
    assert (
        0 < found.load_seconds < found.startup_seconds < found.seconds
        and found.round_seconds > 0
        and found.end_seconds > 0
    )
    assert found.peak_bytes > 50e6 and found.disk_bytes > 10_000
    labels = Counter(row["label"] for row in csv.DictReader((tmp_path / "4.csv").open(newline="")))
    assert set(labels.values()) == {4 * fleet.EACH // fleet.CLASSES}
    assert list(tmp_path.glob("*/run")) == []


def test_ratios_of_fleets_need_both_ends(bench: Bench) -> None:
    fleet = bench("fleet")

    def of(clients: int, cohort: int, value: float) -> Any:
        return fleet.Fleet(clients, cohort, value, value, value, value, value, value, int(value), int(value))

    assert fleet.summary([of(100, 10, 2)]) == {}
    found = fleet.summary([of(100, 10, 2), of(1000, 10, 3), of(10000, 10, 8), of(1000, 100, 6)])
    assert found["memory_ratio_10000_to_100"] == found["startup_seconds_ratio_10000_to_100"] == 4
    cohorts = {key: value for key, value in found.items() if "cohort" in key}
    assert cohorts == {"round_seconds_ratio_cohort_100_to_10_of_1000": 2}


def test_text_goes_between_the_marks_and_nowhere_else(bench: Bench, tmp_path: Path) -> None:
    pages, page = bench("common.pages"), tmp_path / "page.md"
    page.write_text("before\n<!-- one -->\nold\n<!-- end one -->\nafter\n<!-- two -->\n<!-- end two -->\n")
    pages.splice(page, "one", "new")
    pages.splice(page, "three", "nowhere")
    assert (
        page.read_text()
        == "before\n<!-- one -->\nnew\n<!-- end one -->\nafter\n<!-- two -->\n<!-- end two -->\n"
    )


def test_a_table_of_times_names_its_machine(bench: Bench) -> None:
    machine = bench("common.machine")
    table, about = machine.with_machine("| a |\n|---|").split("\n\n")
    assert table == "| a |\n|---|"
    assert about.startswith(machine.cpu_name()) and f"load {machine.LOAD_AT_START:.1f} at the start" in about


def test_the_script_for_gpus_works_without_one_and_says_where_there_is_none(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = bench("gpu")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--tiny", "--repeats", "1"])
    gpu.main()
    lines = capsys.readouterr().out.splitlines()
    made = json.loads(lines[-1])
    cases = [(each["model"], each["blocks"], each["precision"]) for each in made["measured"]]
    assert cases == [
        (model, blocks, precision)
        for model in gpu.MODELS
        for blocks in (1, 2)
        for precision in gpu.PRECISIONS
    ]
    for each in made["measured"]:
        assert (
            list(each["samples_a_second"]) == ["1", "4", "16"] and min(each["samples_a_second"].values()) > 0
        )
        assert each["gflop_a_sample"] > 0 and each["peak_tflops"] > 0 and 0 < each["share_of_peak"] < 1
    assert made["measured"][2]["gflop_a_sample"] > 1.5 * made["measured"][0]["gflop_a_sample"]
    assert sum(line.startswith("| ViT-B/16 |") for line in lines) == 4
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    if not gpu.torch.cuda.is_available():
        with pytest.raises(SystemExit, match="no CUDA GPU here"):
            gpu.main()


def test_the_cost_of_reproducibility_is_a_ratio_within_each_pair(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = bench("reproducibility")
    times = iter([{"step": seconds} for seconds in (2.0, 2.2, 1.8, 1.5)])  # off, on; on, off
    ways: list[str] = []

    def measure_apart(way: str, repeats: int) -> dict[str, float]:
        ways.append(way)
        return next(times)

    monkeypatch.setattr(script, "measure_apart", measure_apart)
    made = script.compare(2, 1)
    assert ways == ["off", "on", "on", "off"]
    found = made["workloads"]["step"]
    assert found["ratio_range"] == pytest.approx([1.1, 1.2])
    assert found["ratio_median"] == pytest.approx(1.15)
    assert found["ratio_of_fastest"] == pytest.approx(1.8 / 1.5)
    assert "| step | 1.150 | 1.100 … 1.200 | 1.200 |" in script.table(made) and made["cpu"]


def test_a_process_without_reproducibility_has_an_empty_setting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = bench("reproducibility")
    seen: list[str] = []

    def run(command: list[str], env: dict[str, str], **more: Any) -> Any:
        seen.append(env["MKL_CBWR"])
        return Namespace(stdout='{"step": 1.0}\n')

    monkeypatch.setattr(script.subprocess, "run", run)
    assert [script.measure_apart(way, 1) for way in ("on", "off")] == [{"step": 1.0}] * 2
    assert seen == ["AUTO", ""]


@pytest.mark.parametrize("mark", ["table versus-flower", "table fleet", "table gpu", "table reproducibility"])
def test_the_page_has_a_place_for_each_table(mark: str) -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    assert f"<!-- {mark} -->" in page and f"<!-- end {mark} -->" in page
