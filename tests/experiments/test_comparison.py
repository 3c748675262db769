"""Comparisons: rows, plan, tuning on validation data, resumption, and a complete small comparison."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedms
from fedms.cli.main import app
from fedms.config import Config, load_config
from fedms.core.errors import ConfigError, FedmsError
from fedms.experiments import experiment, first_stage
from fedms.experiments.comparison.compare import compare
from fedms.experiments.comparison.plan import PlannedRun, plan
from fedms.experiments.comparison.rows import Row, baseline, narrowed, rows
from fedms.experiments.observers import Silent
from fedms.federation.methods import METHODS
from fedms.runs.folder import RunFolder
from fedms.runs.reading.comparison import read_comparison
from fedms.runs.report.comparison.tables import comparison_markdown, comparison_table

TINY: dict[str, Any] = {
    "partition": {"clients": 8},
    "federation": {"cohort": 2},
    "engine": {"workers": 1},
    "compare": {"methods": ["fedavg-sal", "fedms"], "seeds": [0, 1]},
}


class Notes(Silent):
    """Keeps all notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Played:
    """A stand-in for `experiment.run`. `score` and `test` give each client's accuracies for a config."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str | None]] = []
        self.fails_at: int | None = None
        self.score: Callable[[Config], float] = lambda config: 0.5
        self.test: Callable[[Config], float] = lambda config: 0.5 + 0.01 * len(config.method)

    def __call__(
        self,
        config: Config,
        out: Path,
        observer: Any,
        reuse: Path | None = None,
        resume: bool = False,
        **shared: Any,
    ) -> dict[str, Any]:
        assert resume, "an earlier run in the folder must be resumed"
        folder = RunFolder(out)
        with folder.claimed(config, resume):
            pass
        if self.fails_at == len(self.ran):
            raise KeyboardInterrupt
        if reuse:
            assert (reuse / "result.json").exists() and first_stage.reusable(config, reuse)
        self.ran.append((str(out), str(reuse) if reuse else None))
        clients: list[dict[str, Any]] = [
            {"name": f"c{i}", "accuracy_local": self.test(config) + i / 50, "accuracy_global": 0.6 - i / 50}
            for i in range(8)
        ]
        result = {
            "method": config.method,
            "seed": config.seed,
            "accuracy_local": sum(client["accuracy_local"] for client in clients) / 8,
            "accuracy_global": sum(client["accuracy_global"] for client in clients) / 8,
            "validation": {"accuracy_local": self.score(config), "accuracy_global": 0.1}
            if config.evaluation.validation
            else None,
            "per_client": clients,
            "frontier": [],
        }
        folder.write_result(result)
        return result

    def names(self, out: Path) -> list[str]:
        return [str(Path(folder).relative_to(out)) for folder, _ in self.ran]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    stand_in = Played()
    monkeypatch.setattr(experiment, "run", stand_in)
    monkeypatch.setattr(experiment, "check_unchanged", lambda config, folders: None)  # see test_identity
    return stand_in


def config_of(**compare: Any) -> Config:
    return load_config(TINY | {"compare": TINY["compare"] | compare})


# rows


def test_by_default_every_method_is_a_row_and_variants_come_after():
    assert [row.name for row in rows(load_config({}))] == list(METHODS)
    made = rows(
        load_config(
            {
                "compare": {
                    "methods": ["local"],
                    "variants": {"prior 0.9": {"method": "fedms", "gate.prior": 0.9}},
                }
            }
        )
    )
    assert [(row.name, row.method.name, row.overrides) for row in made] == [
        ("local", "local", {}),
        ("prior 0.9", "fedms", {"gate.prior": 0.9}),
    ]
    assert made[1].experiment(load_config({}), 4, {}).gate.prior == 0.9


def test_the_baseline_is_the_first_row_where_it_is_not_compared():
    assert baseline(config_of(), rows(config_of())) == "fedms"
    without = config_of(methods=["local", "fedavg"])
    assert baseline(without, rows(without)) == "local"


def test_methods_and_seeds_can_be_narrowed():
    config = config_of(
        variants={"deep": {"method": "fedms", "activation.blocks": 2}, "other": {"gate.prior": 1.0}},
        baseline="other",
    )
    narrow = narrowed(config, ["deep", "local"], [5])
    assert [row.name for row in rows(narrow)] == ["local", "deep"] and narrow.compare.seeds == (5,)
    assert baseline(narrow, rows(narrow)) == "local"
    assert [row.name for row in rows(narrowed(config, ["deep"], None))] == ["deep"]


@pytest.mark.parametrize(
    "name", ["a/b", "a\\b", "a,b", "..", "a..b", ".hidden", "", " a", "a ", "a\nb", "x" * 65]
)
def test_a_row_that_cannot_name_a_folder_is_refused(name):
    with pytest.raises(ConfigError, match="cannot name a row"):
        load_config({"compare": {"variants": {name: {"gate.prior": 0.9}}}})


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"methods": ["fedmss"]}, "compare.methods: 'fedmss' is not known; allowed: fedms, "),
        ({"methods": ["fedms", "fedms"]}, "compare.methods: fedms comes twice"),
        ({"methods": []}, "compare.methods: must name at least one"),
        ({"seeds": []}, "compare.seeds: must name at least one"),
        ({"seeds": [0, -1]}, "compare.seeds: must not be negative"),
        ({"baseline": "nobody"}, "compare.baseline: 'nobody' is not known"),
        ({"criterion": "accuracy"}, "compare.criterion: input should be"),
        ({"variants": {"fedms": {"gate.prior": 0.9}}}, "compare.variants: 'fedms' is a method's name"),
        ({"variants": {"x": {"method": "fedmss"}}}, "compare.variants.x.method: 'fedmss' is not known"),
        (
            {"variants": {"x": {"gate.prio": 0.9}}},
            "compare.variants.x: gate.prio: unknown key; allowed: objective",
        ),
        (
            {"variants": {"x": {"gate.prior": 9}}},
            "compare.variants.x: gate.prior: input should be less than or equal to 1",
        ),
        (
            {"variants": {"x": {"partition.alpha": 1.0}}},
            "compare.variants.x: partition.alpha must be the same",
        ),
        ({"variants": {"x": {"seed": 3}}}, "compare.variants.x: seed must be the same"),
        ({"variants": {"x": {"plugins": ["mine"]}}}, "compare.variants.x: plugins must be the same"),
        ({"tune": {"training.rate": [0.1]}}, "compare.tune.training.rate: training.rate: unknown key"),
        (
            {"tune": {"training.learning_rate": [0.1, -1.0]}},
            "compare.tune.training.learning_rate: training.learning_rate: input should be",
        ),
        (
            {"tune": {"training.learning_rate": []}},
            "compare.tune.training.learning_rate: must name at least one",
        ),
        ({"tune": {"method": ["fedms", "local"]}}, "compare.tune.method: method must be the same"),
        (
            {"tune": {"gate.objective": ["likelihood"], "gate.network": [True, False]}},
            "gate.network: must be true when",
        ),
    ],
)
def test_a_wrong_section_is_one_line(tmp_path, monkeypatch, section, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text(json.dumps({"compare": section}))
    done = CliRunner().invoke(app, ["compare", "wrong.yaml", "--quiet"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and says in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--methods", "fedmss"), ("--seeds", "1,x"), ("--seeds", "1,1"), ("--methods", "fedms,")],
)
def test_a_wrong_option_is_one_line(tmp_path, monkeypatch, option, value):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text("")
    done = CliRunner().invoke(app, ["compare", "good.yaml", option, value])
    assert done.exit_code == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# the plan


def wanted(*rows_and_keys: tuple[str, dict[str, Any]], seeds: tuple[int, ...] = (0,)) -> list[PlannedRun]:
    config = config_of()
    made = []
    for seed in seeds:
        for name, keys in rows_and_keys:
            method = METHODS[str(keys.get("method", name))]
            row = Row(name, method, {key: value for key, value in keys.items() if key != "method"})
            made.append(
                PlannedRun(f"runs/{name}-{seed}", f"{name}, seed {seed}", row.experiment(config, seed, {}))
            )
    return made


def test_who_trains_a_first_stage_alone_runs_before_those_that_reuse_it():
    runs = plan(
        wanted(("fedms", {}), ("fedavg-finetune", {}), ("fedavg-sal", {}), ("fedavg", {}), seeds=(0, 1))
    )
    order = [run.folder for run in runs]
    assert len(order) == len(set(order)) == 8 and not any(run.hidden for run in runs)
    firsts = {run.folder: run.first for run in runs if run.first}
    assert firsts == {
        f"runs/{row}-{seed}": f"runs/{first}-{seed}" for seed in (0, 1) for row, first in PAIRS.items()
    }
    assert all(order.index(first) < order.index(row) for row, first in firsts.items())


PAIRS = {"fedms": "fedavg-sal", "fedavg-finetune": "fedavg"}


def test_a_first_stage_that_no_row_trains_alone_is_trained_by_a_hidden_run():
    runs = plan(wanted(("fedms", {}), ("mixture-constant", {}), ("fedavg-finetune", {})))
    hidden = runs[0]
    assert (
        hidden.hidden
        and hidden.folder.startswith("stages/fedavg-sal-0-")
        and hidden.config.method == "fedavg-sal"
    )
    assert [(run.folder, run.first) for run in runs[1:]] == [
        ("runs/fedms-0", hidden.folder),
        ("runs/mixture-constant-0", hidden.folder),
        ("runs/fedavg-finetune-0", None),  # no other run needs this stage
    ]
    again = plan(
        wanted(("mixture-constant", {}), ("p", {"method": "fedms", "gate.prior": 0.9}), ("fedms", {}))
    )
    assert (
        again[0].folder == hidden.folder and again[0].config == hidden.config
    )  # it does not depend on the run that needs it


def test_first_stages_with_other_settings_are_not_shared():
    runs = plan(
        wanted(
            ("fedavg-sal", {}),
            ("rank", {"method": "fedms", "lora.rank": 2}),
            ("prior", {"method": "fedms", "gate.prior": 0.9}),
        )
    )
    assert {run.folder: run.first for run in runs} == {
        "runs/fedavg-sal-0": None,
        "runs/rank-0": None,
        "runs/prior-0": "runs/fedavg-sal-0",
    }
    backbone = plan(wanted(("fedavg-sal", {}), ("gate", {"method": "fedms", "gate.features": "backbone"})))
    assert [run.first for run in backbone] == [None, None]


def test_a_stage_that_clients_keep_to_themselves_is_not_shared():
    assert [
        run.first
        for run in plan(wanted(("local", {}), ("local too", {"method": "local", "head.label_prior": 0.5})))
    ] == [None, None]


def test_compare_says_nothing_of_a_run():
    assert first_stage.first_stage_settings(config_of()) == first_stage.first_stage_settings(
        config_of(seeds=[7])
    )


# tuning


def test_tuning_reads_validation_data_alone(played, tmp_path):
    """Test accuracy would select the other candidate."""
    played.score = lambda config: {1e-3: 0.7, 1e-2: 0.6, 3e-3: 0.6}[config.training.learning_rate]
    played.test = lambda config: {1e-3: 0.1, 1e-2: 0.9, 3e-3: 0.9}[config.training.learning_rate]
    config = config_of(
        tune={"training.learning_rate": [0.01, 0.001]}, methods=["fedavg-sal", "fedms", "statistics"]
    )
    made = compare(config, tmp_path / "c")
    assert {row["name"]: row["tuned"] for row in made["methods"]} == {
        "fedavg-sal": {"training.learning_rate": 0.001},
        "fedms": {"training.learning_rate": 0.001},
        "statistics": {},  # this method trains nothing
    }
    tried = made["tuning"]["rows"]["fedms"]
    assert [(each["keys"], each["score"]) for each in tried["candidates"]] == [
        ({"training.learning_rate": 0.01}, 0.6),
        ({"training.learning_rate": 0.001}, 0.7),
    ]
    assert tried["chosen"] == {"training.learning_rate": 0.001} and list(made["tuning"]["rows"]) == [
        "fedavg-sal",
        "fedms",
    ]
    assert (
        made["tuning"]["grid"] == {"training.learning_rate": [0.01, 0.001]}
        and made["tuning"]["criterion"] == "accuracy_local"
    )
    page = (tmp_path / "c" / "comparison.md").read_text(encoding="utf-8")
    assert "| fedms | training.learning_rate 0.01: 0.6000; **training.learning_rate 0.001: 0.7000** |" in page
    # the best trial is the run of the first seed: 2 x 2 trials, statistics twice, two rows on the second seed
    assert len(played.ran) == len(set(played.names(tmp_path / "c"))) == 8
    folders = {(run["row"], run["seed"]): run["folder"] for run in made["runs"]}
    assert (
        folders["fedms", 0] == "tuning/fedms/training.learning_rate=0.001"
        and folders["fedms", 1] == "runs/fedms-1"
    )
    # trials also share first stages
    assert dict(played.ran)[str(tmp_path / "c" / folders["fedms", 0])] == str(
        tmp_path / "c" / folders["fedavg-sal", 0]
    )


def test_the_grid_leaves_out_what_cannot_matter_and_what_a_variant_fixes():
    config = config_of(
        tune={"training.learning_rate": [1e-3, 1e-2], "gate.epochs": [1, 2], "head.label_prior": [0.5]}
    )
    sizes = {
        name: len(Row(name, METHODS[name], {}).grid(config)) for name in ("fedms", "fedavg", "statistics")
    }
    assert sizes == {"fedms": 4, "fedavg": 2, "statistics": 1}
    assert len(Row("x", METHODS["fedms"], {"gate.epochs": 3}).grid(config)) == 2


def test_a_row_is_tuned_by_the_rates_it_trains_with():
    names = ("learning_rate", "head_learning_rate", "local_learning_rate")
    config = config_of(tune={f"training.{name}": [1e-3, 1e-2] for name in names})
    expected = {
        "fedms": names,
        "fedavg": names[:2],
        "fedclip": names[:1],
        "linear-probe": names[1:2],
        "local": names[2:],
        "statistics": (),
    }
    for method, used in expected.items():
        first = Row(method, METHODS[method], {}).grid(config)[0]
        assert set(first) == {f"training.{name}" for name in used}, method


def test_equal_scores_choose_the_first_candidate(played, tmp_path):
    made = compare(config_of(tune={"lora.rank": [2, 4, 8]}, methods=["fedavg"], seeds=[0]), tmp_path / "c")
    assert made["methods"][0]["tuned"] == {"lora.rank": 2} and len(played.ran) == 3


# resumption


def test_an_interrupted_comparison_does_only_what_is_missing(played, tmp_path):
    out, played.fails_at = tmp_path / "c", 2
    with pytest.raises(KeyboardInterrupt):
        compare(config_of(), out)
    assert (
        played.names(out) == ["runs/fedavg-sal-0", "runs/fedms-0"] and not (out / "comparison.json").exists()
    )
    assert (out / "runs/fedavg-sal-1/config.yaml").exists()  # it was started
    played.fails_at, notes = None, Notes()
    compare(config_of(), out, notes)
    assert played.names(out)[2:] == ["runs/fedavg-sal-1", "runs/fedms-1"]
    assert notes.notes == [
        "2 of 4 runs are finished already",
        "run 3 of 4: fedavg-sal, seed 1",
        "run 4 of 4: fedms, seed 1",
    ]
    before = json.loads((out / "comparison.json").read_text())
    compare(config_of(), out, notes)
    assert len(played.ran) == 4 and notes.notes[-1] == "4 of 4 runs are finished already"
    assert json.loads((out / "comparison.json").read_text()) == before


def test_a_comparison_can_grow_and_a_spent_first_stage_may_go(played, tmp_path):
    out, notes = tmp_path / "c", Notes()
    compare(config_of(methods=["fedms", "mixture-constant"], seeds=[0]), out)
    stage = next((out / "stages").iterdir())
    (stage / "result.json").unlink()
    made = compare(
        load_config(
            TINY
            | {
                "engine": {"workers": 2},
                "compare": {"methods": ["fedms", "mixture-constant"], "seeds": [0, 1]},
            }
        ),
        out,
        notes,
    )
    assert (
        notes.notes[0] == "2 of 5 runs are finished already"
        and len(played.ran) == 6
        and made["seeds"] == [0, 1]
    )


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("notes.txt", "already there and not empty"),
        ("runs/fedms-1/thesis.txt", "holds files that are no run's"),
        ("runs/fedms-1", "holds files that are no run's"),
    ],
)
def test_foreign_files_are_refused_and_left_alone(played, tmp_path, place, says):
    out = tmp_path / "c"
    if "runs" in place:
        compare(config_of(seeds=[0]), out)
    (out / place).parent.mkdir(parents=True, exist_ok=True)
    (out / place).write_text("mine")
    with pytest.raises(FedmsError, match=says) as caught:
        compare(config_of(), out)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1
    assert (out / place).read_text() == "mine"


def test_a_folder_of_another_config_is_refused(played, tmp_path):
    out = tmp_path / "c"
    compare(config_of(), out)
    with pytest.raises(FedmsError, match=r"lora.rank 8, not 2; name another folder"):
        compare(load_config({**TINY, "lora": {"rank": 2}}), out)
    variant = config_of(variants={"x": {"method": "fedms", "gate.prior": 0.9}})
    compare(variant, out)
    with pytest.raises(FedmsError, match=r"x-0: was run with another config: gate.prior 0.9, not 0.8"):
        compare(config_of(variants={"x": {"method": "fedms", "gate.prior": 0.8}}), out)
    assert len(played.ran) == 6


def test_two_processes_do_not_compare_in_one_folder(played, tmp_path):
    def meanwhile(config: Config) -> float:
        with pytest.raises(FedmsError, match="another process is at work in this folder"):
            compare(config_of(), tmp_path / "c")
        return 0.5

    played.test = meanwhile
    compare(config_of(methods=["local"], seeds=[0]), tmp_path / "c")


def test_a_run_that_fails_is_named(monkeypatch, tmp_path):
    def fails(*_: Any, **__: Any) -> None:
        raise ConfigError("head.kind: pictures have no class names")

    monkeypatch.setattr(experiment, "run", fails)
    with pytest.raises(ConfigError, match=r"^fedavg-sal, seed 0: head.kind: pictures"):
        compare(config_of(), tmp_path / "c")


# output


def test_the_python_face_writes_where_the_config_is_named(played, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quick.yaml").write_text(json.dumps(TINY))
    made = fedms.compare("quick.yaml", methods=["fedms", "local"], seeds=[3])
    assert made == json.loads(Path("runs/quick-compare/comparison.json").read_text())
    assert [(run["row"], run["seed"]) for run in made["runs"]] == [("fedms", 3), ("local", 3)]


def test_a_comparison_can_be_published(played, tmp_path):
    out = tmp_path / "c"
    played.test = lambda config: 0.5 if config.method == "fedms" else 0.3
    compare(config_of(methods=["fedms", "local"], variants={"a_b & 50 %": {"method": "local"}}), out)
    rows = list(csv.DictReader((out / "comparison.csv").read_text().splitlines()))
    runs = json.loads((out / "comparison.json").read_text())["runs"]
    assert len(rows) == len(runs) > 3
    for row in rows:
        found = [run for run in runs if (run["row"], str(run["seed"])) == (row["row"], row["seed"])]
        assert float(row["accuracy_local"]) == found[0]["result"]["accuracy_local"]
    page = (out / "comparison.tex").read_text()
    assert page.count(r"\\") == 4 and r"\toprule" in page and r"a\_b \& 50 \%" in page
    assert r"\textbf{" in page and r"$\pm$" in page
    for form in ("csv", "tex", "md"):
        printed = CliRunner().invoke(app, ["report", str(out), "--format", form])
        assert printed.exit_code == 0 and printed.stdout == (out / f"comparison.{form}").read_text()
    assert CliRunner().invoke(app, ["report", str(out), "--format", "pdf"]).exit_code == 0
    assert list(out.glob("figures/*.pdf"))
    assert CliRunner().invoke(app, ["report", str(out), "--format", "doc"]).exit_code == 2


def test_tables_mark_what_can_be_told_apart(played, tmp_path):
    out = tmp_path / "c"
    played.test = lambda config: (
        0.5 if config.method == "fedms" else 0.3 if config.method == "local" else 0.501
    )
    compare(config_of(methods=["fedms", "fedavg", "local"], variants={"a|b": {"method": "local"}}), out)
    text = comparison_markdown(read_comparison(out))
    assert "| fedavg | **0.571 ± 0.000** |" in text and "a\\|b (method local)" in text
    assert (
        "## Against fedms" in text
        and "Nothing was tuned" in text
        and f"fedms compare {out}/comparison.yaml" in text
    )
    assert comparison_table(read_comparison(out)).row_count == 4
    again = load_config(out / "comparison.yaml")
    assert again.compare.variants == {"a|b": {"method": "local"}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no run of this comparison is finished yet"),
        ("{", "damaged: not valid JSON"),
        ("[]", "damaged"),
        ("{}", "damaged: config is not as it should be"),
    ],
)
def test_a_damaged_comparison_is_one_line(tmp_path, text, says):
    (tmp_path / "comparison.yaml").write_text("")
    if text is not None:
        (tmp_path / "comparison.json").write_text(text)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 1 and done.stderr.count("\n") == 1 and says in done.stderr


def test_rows_that_are_not_whole_are_damaged(played, tmp_path):
    compare(config_of(), tmp_path / "c")
    path = tmp_path / "c" / "comparison.json"
    values = json.loads(path.read_text())
    for key, value in (("methods", [{"name": "fedms"}]), ("methods", []), ("runs", [3]), ("seeds", None)):
        path.write_text(json.dumps(values | {key: value}))
        with pytest.raises(FedmsError, match=f"damaged: {key}"):
            read_comparison(tmp_path / "c")
