"""Plug-ins: `fedms.register`, the config key `plugins`, and the examples of docs/plugins.md with two
workers."""

import re
import subprocess
import sys
from collections.abc import MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fedms
from fedms.config import load_config
from fedms.config.data import PARTITION_RULES
from fedms.core.errors import ConfigError
from fedms.data.partition import RULES
from fedms.federation.aggregation.mean import average
from fedms.federation.method import GLOBAL, LOCAL, LORA
from fedms.federation.methods import METHODS, find
from fedms.federation.registration import declarations, receive
from fedms.model.families import FAMILIES
from tiny_models import SIZES, word_tokenizer
from tiny_run import run_config, write_texts

PAGE = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
MODULE = "\n\n".join(block for block in BLOCKS if block.startswith("# my_module.py\n"))
NOTEBOOK = next(block for block in BLOCKS if block.startswith("# in a notebook\n"))
METHOD = fedms.Method("own", "a method of these tests", None, (GLOBAL, LOCAL), "local")


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Undo what a test adds: methods, families, the import path."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    registries: tuple[MutableMapping[str, Any], ...] = (METHODS, FAMILIES)
    before = [(registry, dict(registry)) for registry in registries]
    yield
    for registry, values in before:
        registry.clear()
        registry.update(values)


# registering


def test_a_registered_method_is_found_and_the_same_one_may_come_again():
    fedms.register(METHOD)
    fedms.register(replace(METHOD))
    assert find("own") == METHOD
    with pytest.raises(ConfigError, match=r"^register: there is another method of the name 'own'$"):
        fedms.register(replace(METHOD, summary="another"))


def test_a_built_in_method_is_not_replaced():
    with pytest.raises(ConfigError, match="another method of the name 'fedavg'"):
        fedms.register(replace(METHOD, name="fedavg"))
    fedms.register(METHODS["fedavg"])  # the same one


@pytest.fixture(autouse=True)
def rules_are_forgotten():
    """A rule that a test registers is not there for other tests of the process."""
    before = {*RULES}
    yield
    for name in {*RULES} - before:
        del RULES[name]
        PARTITION_RULES.remove(name)


def test_a_function_of_a_second_import_is_the_same():
    """A script that names itself in `plugins` is imported twice."""
    source = "def plug_same(dataset, config, seed):\n    return [], dataset\n"
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    other: dict[str, Any] = {}
    exec(source, first)
    exec(source, second)
    exec(source.replace("[]", "[1]"), other)
    fedms.register(first["plug_same"], name="plug-same")
    fedms.register(second["plug_same"], name="plug-same")
    with pytest.raises(ConfigError, match="another partition rule of the name 'plug-same'"):
        fedms.register(other["plug_same"], name="plug-same")


@pytest.mark.parametrize(
    ("thing", "name", "line"),
    [
        (
            "fedavg",
            None,
            "register: str is none of these: method, aggregator, predictor, model family, partition rule",
        ),
        (METHOD, "x", "register: a method has its own name; leave out name='x'"),
        (fedms.Family("text", "encoder", ()), None, "register: a model family needs a name"),
        (lambda dataset, config, seed: ([], None), None, "register: a partition rule needs a name"),
        (replace(METHOD, name="a/b"), None, "method 'a/b': cannot name a folder"),
        (
            replace(METHOD, predicts="lokal"),
            None,
            "method own: predicts: input should be 'global', 'local'",
        ),
        (
            replace(METHOD, stages=(replace(GLOBAL, trains=("heads",)),)),
            None,
            "method own, stage global: 'heads' is no parameter group; known: A, B, ",
        ),
        (
            replace(METHOD, stages=(GLOBAL, replace(LOCAL, shares=("gate",)))),
            None,
            "method own, stage local: shares or phases name gate, which `trains` lacks",
        ),
        (
            replace(METHOD, stages=(replace(GLOBAL, shares=LORA), LOCAL)),
            None,
            "method own, stage global: a global expert shares everything that it trains",
        ),
        (replace(METHOD, stages=(LOCAL, GLOBAL)), None, "method own: a global stage comes after a local one"),
        (replace(METHOD, stages=(GLOBAL, GLOBAL, LOCAL)), None, "method own: two stages have one name"),
        (replace(METHOD, stages=(GLOBAL,)), None, "method own: predicts local, but no stage trains a local"),
        (replace(METHOD, gate="constant"), None, "method own: `gate` is needed for `predicts: mixture`"),
        (
            replace(METHOD, predicts="mixture", gate="learned"),
            None,
            "method own: `gate: learned` is needed where a stage trains the gate",
        ),
    ],
)
def test_a_mistake_is_one_line(thing, name, line):
    with pytest.raises(ConfigError) as caught:
        fedms.register(thing, name)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
    assert "own" not in METHODS


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_built_in_method_passes_the_check_and_survives_json(method):
    method.check()
    assert fedms.Method.from_dict(method.to_dict()) == method


# aggregators


def alike(shared, updates, config):
    return average(shared, [replace(update, weight=1.0) for update in updates])


def test_an_aggregator_is_refused_where_only_a_weighted_mean_will_do():
    fedms.register(fedms.Aggregator("plug-alike", alike))
    config = load_config({"federation": {"aggregation": "plug-alike"}})
    assert METHODS["fedavg"].configure(config) == config
    with pytest.raises(ConfigError, match=r"plug-alike is no weighted mean, and clients of method fedalt"):
        METHODS["fedalt"].configure(config)
    robust = load_config({"federation": {"aggregation": "plug-alike", "robust": "median"}})
    with pytest.raises(
        ConfigError, match=r"^federation\.robust: must be `none` with federation\.aggregation"
    ):
        METHODS["fedavg"].configure(robust)
    tiers = load_config(
        {"federation": {"aggregation": "plug-alike"}, "lora": {"tiers": [{"share": 1.0, "rank": 2}]}}
    )
    with pytest.raises(ConfigError, match=r"^lora\.tiers: federation\.aggregation: plug-alike needs"):
        METHODS["fedavg"].configure(tiers)


def test_a_robust_aggregator_is_a_value_of_robust():
    fedms.register(fedms.Aggregator("plug-robust", alike, robust=True))
    assert load_config({"federation": {"robust": "plug-robust"}}).federation.robust == "plug-robust"
    with pytest.raises(ConfigError, match=r"^federation\.aggregation: input should be 'average'"):
        load_config({"federation": {"aggregation": "plug-robust"}})


# the config key


def module(folder: Path, name: str, text: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    return name


def test_a_module_beside_the_config_is_found_and_hides_nothing(tmp_path):
    name = module(tmp_path, "plug_beside", "import json; where = json.__file__")
    (tmp_path / "json.py").write_text("raise RuntimeError")
    (tmp_path / "one.yaml").write_text(f"plugins: [{name}]\n")
    with pytest.raises(ConfigError, match=r"^plugins: no module plug_beside; it must lie beside the config"):
        load_config(tmp_path / "one.yaml")
    assert load_config(tmp_path / "one.yaml", plugin_folder=tmp_path).plugins == (name,)
    assert sys.path[-1] == str(tmp_path.resolve())


def test_a_folder_without_the_module_stays_off_the_path(tmp_path):
    load_config({"plugins": ["json"]}, plugin_folder=tmp_path)
    with pytest.raises(ConfigError):
        load_config({"plugins": ["plug_missing"]}, plugin_folder=tmp_path)
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1\nx.y\n", r"plugins: NAME cannot be imported: AttributeError: .*\(NAME.py, line 2\)"),
        ("def (:\n", r"plugins: NAME cannot be imported: SyntaxError: invalid syntax \(NAME.py, line 1\)"),
        ("import plug_nowhere\n", r"plugins: NAME cannot be imported: .* 'plug_nowhere' \(.*, line 1\)"),
        ("raise SystemExit(3)\n", r"plugins: NAME cannot be imported: SystemExit: 3 \(NAME.py, line 1\)"),
        ("import fedms\nfedms.register(3)\n", r"plugins: NAME: register: int is none of these: .*"),
    ],
    ids=["error", "syntax", "import", "exit", "register"],
)
def test_a_module_that_cannot_be_imported_is_one_line(tmp_path, request, text, line):
    name = module(tmp_path, f"plug_{request.node.callspec.id}", text)
    with pytest.raises(ConfigError) as caught:
        load_config({"plugins": [name]}, plugin_folder=tmp_path)
    assert re.fullmatch(line.replace("NAME", name), str(caught.value)), caught.value


@pytest.mark.parametrize("name", ["my_module.py", "folder/my_module", "", "a..b", "../x"])
def test_what_names_no_module_is_refused(name):
    with pytest.raises(ConfigError, match=r"^plugins: .* must be the name of a module, such as my_module$"):
        load_config({"plugins": [name]})


def test_plugins_is_a_list():
    with pytest.raises(ConfigError, match=r"^plugins: input should be a valid tuple, not 'my_module'$"):
        load_config({"plugins": "my_module"})


def test_a_module_with_the_name_of_another_is_refused(tmp_path):
    name = module(tmp_path, "colorsys", "")
    with pytest.raises(ConfigError, match=r"colorsys\.py has the name of another module; rename it$"):
        load_config({"plugins": [name]}, plugin_folder=tmp_path)


# worker processes


def halves(dataset, config, seed):
    owner = np.arange(len(dataset.labels)) * config.clients // len(dataset.labels)
    return [f"half-{number}" for number in range(config.clients)], owner


@pytest.mark.parametrize("changes", [{"engine__workers": 2}, {"federation__deadline_seconds": 60.0}])
def test_a_function_that_workers_cannot_import_is_refused_before_anything_is_written(
    checkpoint, tmp_path, changes
):
    write_texts(tmp_path / "texts.csv")
    fedms.register(halves, name="plug-halves")
    config = run_config(checkpoint("bert"), tmp_path / "texts.csv", partition__rule="plug-halves", **changes)
    with pytest.raises(ConfigError) as caught:
        fedms.run(config, tmp_path / "run")
    assert str(caught.value) == (
        "partition rule 'plug-halves' was registered in test_plugins, which worker processes do not import: "
        "put it in a module and name that in `plugins`, or set engine.workers=1"
    )
    assert not (tmp_path / "run").exists()
    assert declarations(config.model_copy(update={"plugins": ("test_plugins",)}))


def test_declarations_are_taken_over_once():
    family = fedms.Family("text", "layers", ("q", "v"), before=("up",))
    fedms.register(replace(METHOD, settings={"lora.targets": ("query",)}))
    fedms.register(family, name="plug-family")
    sent = declarations(load_config({}))
    receive(sent)
    del METHODS["own"], FAMILIES["plug-family"]
    receive(sent)
    assert find("own").settings == {"lora.targets": ["query"]} and FAMILIES["plug-family"] == family


def tiny_electra(folder: Path) -> Path:
    import torch
    import transformers as hf

    torch.manual_seed(0)
    sizes = SIZES | {"intermediate_size": 64, "vocab_size": 40, "max_position_embeddings": 24}
    hf.ElectraModel(hf.ElectraConfig(**sizes, embedding_size=SIZES["hidden_size"])).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.integration
def test_the_notebook_of_the_page_trains_in_two_workers(checkpoint, tmp_path):
    write_texts(tmp_path / "texts.csv")
    config = run_config(checkpoint("bert"), tmp_path / "texts.csv")
    (tmp_path / "assistant.yaml").write_text(config.to_yaml())
    done = subprocess.run(
        [sys.executable], input=NOTEBOOK, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout) <= 1
    declared = yaml.safe_load((tmp_path / "runs" / "fedavg-head" / "config.yaml").read_text())
    assert declared["method"] == "fedavg-head" and declared["engine"]["workers"] == 2


@pytest.mark.integration
def test_the_modules_of_the_page_work_from_a_yaml_file_with_two_workers(tmp_path):
    """Method, aggregator, partition rule and family in one module beside the config."""
    write_texts(tmp_path / "texts.csv")
    module(tmp_path / "configs", "my_module", MODULE)
    values = run_config(tiny_electra(tmp_path / "electra"), tmp_path / "texts.csv").model_dump(mode="json")
    values |= {"plugins": ["my_module"], "method": "fedavg-head"}
    values["partition"]["rule"], values["federation"]["aggregation"] = "by-length", "alike"
    values["engine"]["workers"] = 2
    (tmp_path / "configs" / "mine.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "fedms.cli", "run", "configs/mine.yaml", "--out", "out", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "clients" / "length-0" / "model.safetensors").exists()
    with pytest.raises(ConfigError, match=r"^plugins: no module my_module"):
        load_config(tmp_path / "out" / "config.yaml")
