"""A global expert that starts from a PEFT adapter: from an export to the first round of another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fedms
from fedms.core.errors import ConfigError, FedmsError
from fedms.experiments import experiment
from fedms.federation.adapter_start import _same_name, adapter_pairs
from fedms.federation.recipe import recipe_for
from fedms.federation.server import Server
from fedms.model.arrays import Arrays, strip
from fedms.model.parts import group
from fedms.runs.export.export import export_client
from fedms.runs.folder import RunFolder
from tiny_run import finished  # noqa: F401 (a fixture)


@pytest.fixture
def adapter(finished, tmp_path):  # noqa: F811
    """The global expert of a finished run, as an adapter and as arrays."""
    client = fedms.load(finished(), "client-0")
    export_client(client, tmp_path / "export")
    arrays = strip(client.personal.arrays, "global/")
    pairs = {name: array for name, array in arrays.items() if name.startswith("block.")}
    return tmp_path / "export" / "global", pairs


def started(finished, adapter, **changes):  # noqa: F811
    """A config whose global expert starts from the adapter."""
    config = RunFolder(finished()).config()
    config = config.model_copy(update={"model": config.model.model_copy(update={"adapter": str(adapter)})})
    return fedms.load_config(config.model_dump(), [f"{key}={value}" for key, value in changes.items()])


def pairs_of(arrays):
    return {name: array for name, array in arrays.items() if group(name) in ("A", "B")}


def test_the_first_round_begins_with_the_adapters_pairs(finished, adapter, tmp_path, monkeypatch):  # noqa: F811
    folder, pairs = adapter
    config = started(finished, folder, **{"activation.rule": "fixed"})
    sent: list[Arrays] = []
    real = Server.tasks

    def tasks(self, exchange, clients, stage, number, *more):
        made = real(self, exchange, clients, stage, number, *more)
        first = ("train", "global", 1)
        sent.extend(task.arrays for task in made if (task.kind, task.stage, number) == first)
        return made

    monkeypatch.setattr(Server, "tasks", tasks)
    result = experiment.run(config, tmp_path / "run")
    assert len(sent) == 2 and len(pairs) == 8
    for arrays in sent:
        found = pairs_of(arrays)
        assert found.keys() == pairs.keys()
        assert all(torch.equal(found[name], array) for name, array in pairs.items())
    again = experiment.run(config, tmp_path / "again")
    assert again["accuracy_local"] == result["accuracy_local"], "and it comes to the same each time"


def test_a_block_gets_its_pairs_when_it_is_activated(finished, adapter, backbone):  # noqa: F811
    folder, pairs = adapter
    keys = {"activation.blocks": 1, "activation.rule": "every", "activation.every": 1}
    keys |= {"federation.rounds_global": 3, "head.kind": "linear"}
    config = started(finished, folder, **keys)
    names = [f"client-{number}" for number in range(3)]
    ranks = dict.fromkeys(names, config.lora.rank)
    server = Server(recipe_for(config), backbone, names, ranks, adapter_pairs(config, backbone))
    [stage] = [stage for stage in server.method.stages if stage.expert == "global"]
    server.start_head(4, None)
    server.begin(stage)
    top = {name: array for name, array in pairs.items() if name.startswith("block.2.")}
    assert pairs_of(server.shared).keys() == top.keys()
    assert server.observe(stage, 1, 0.5)
    assert pairs_of(server.shared).keys() == pairs.keys(), "the adapter has two blocks"
    assert all(torch.equal(server.shared[name], array) for name, array in pairs.items())
    assert server.observe(stage, 2, 0.5)
    new = {name for name in pairs_of(server.shared) if name.startswith("block.0.")}
    assert len(new) == 4 and all(not server.shared[name].any() for name in new if group(name) == "B")


def test_a_run_without_an_adapter_starts_as_ever(finished, backbone):  # noqa: F811
    assert adapter_pairs(RunFolder(finished()).config(), backbone) == {}


REFUSED = (
    *({"method": method} for method in ("local", "ffa-lora", "fedsa-lora", "linear-probe", "statistics")),
    {"method": "promptfl"},
    {"federation.aggregation": "freeze-a"},
)


@pytest.mark.parametrize("changes", REFUSED, ids=str)
def test_a_method_without_a_global_start_is_refused(finished, adapter, tmp_path, changes):  # noqa: F811
    config = started(finished, adapter[0], **changes)
    with pytest.raises(
        ConfigError, match=r"^model\.adapter: method .* has no global stage that trains"
    ) as caught:
        experiment.run(config, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_ranks_must_agree(finished, adapter, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match=r"^lora.rank: must be 4, the rank of .*global, not 2$"):
        experiment.run(started(finished, adapter[0], **{"lora.rank": 2}), tmp_path / "run")
    with pytest.raises(FedmsError, match=r"nowhere/adapter_config.json: cannot be read"):
        experiment.run(started(finished, adapter[0].parent / "nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_methods_that_average_products_can_start_from_it(finished, adapter, tmp_path):  # noqa: F811
    folder, pairs = adapter
    for number, method in enumerate(("fedex-lora", "flexlora")):
        out = tmp_path / str(number)
        experiment.run(started(finished, folder, method=method), out)
        arrays, _ = RunFolder(out).stage("global")
        assert pairs_of(strip(arrays, "shared/")).keys() >= pairs.keys()


def rewritten(folder, tmp_path, file, **values):
    """A copy of the adapter with other values in this file."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    said = json.loads((other / file).read_text()) | values
    (other / file).write_text(json.dumps(said))
    return other


def test_an_adapter_of_another_model_is_one_line(finished, adapter, backbone, checkpoint, tmp_path):  # noqa: F811
    folder, pairs = adapter
    other = rewritten(folder, tmp_path, "head.json", base_weights="0" * 64)
    line = r"^model\.adapter: \S+ was made for bert\d*, whose weights are not those of model\.name \S+$"
    with pytest.raises(ConfigError, match=line):
        adapter_pairs(started(finished, other), backbone)
    renamed = Path(shutil.copytree(folder, tmp_path / "renamed"))
    said = json.loads((renamed / "adapter_config.json").read_text()) | {"base_model_name_or_path": "x/y"}
    (renamed / "adapter_config.json").write_text(json.dumps(said))
    assert adapter_pairs(started(finished, renamed), backbone).keys() == pairs.keys(), "the digest decides"
    (renamed / "head.json").unlink()
    line = r"^model\.adapter: \S+ was made for x/y, and model\.name is \S+; if both are one model, write"
    with pytest.raises(ConfigError, match=line):
        adapter_pairs(started(finished, renamed), backbone)


@pytest.mark.parametrize(
    ("base", "model", "same"),
    [
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased", True),
        ("google-bert/bert-base-uncased", "other/bert-base-uncased", False),
        ("google-bert/bert-base-uncased", "./models/bert-base-uncased", True),
        ("bert-base-uncased", "google-bert/bert-base-uncased", True),
        ("roberta-base", "google-bert/bert-base-uncased", False),
        ("/x/models--google-bert--bert-base/snapshots/0a1b", "google-bert/bert-base", True),
        ("sentence-transformers/all-MiniLM-L6-v2", "minilm", True),
        ("C:\\models\\bert", "/models/bert/", True),
    ],
)
def test_names_of_one_model(base, model, same):
    assert _same_name(base, model) == same


def test_an_adapter_of_more_layers_is_one_line(finished, adapter, backbone, tmp_path):  # noqa: F811
    folder, _ = adapter
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    tensors = load_file(other / "adapter_model.safetensors")
    for target in ("attention.self.key", "output.dense"):
        for matrix in "AB":
            name = f"base_model.model.encoder.layer.1.{target}.lora_{matrix}.weight"
            tensors[name] = torch.zeros(4, 32)
    save_file(tensors, other / "adapter_model.safetensors")
    line = (
        "has pairs on dense, key, which lora.targets does not train; name all of the adapter's layers there"
    )
    with pytest.raises(FedmsError, match=line):
        adapter_pairs(started(finished, other), backbone)


def test_an_adapter_of_a_tasks_model_fits_its_base(finished, adapter, backbone, tmp_path):  # noqa: F811
    """PEFT names layers from the model that was adapted, such as `bert.encoder...`."""
    folder, pairs = adapter
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    tensors = load_file(other / "adapter_model.safetensors")
    start = "base_model.model."
    save_file(
        {f"{start}bert.{name.removeprefix(start)}": each for name, each in tensors.items()},
        other / "adapter_model.safetensors",
    )
    found = adapter_pairs(started(finished, other), backbone)
    assert found.keys() == pairs.keys() and all(torch.equal(found[name], pairs[name]) for name in pairs)
