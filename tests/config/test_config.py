"""The config: a valid config survives a round trip, and an error is one line that names the key."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic.fields import FieldInfo

from fedms.config import Config, load_config
from fedms.core.errors import ConfigError, FedmsError

SECTIONS = [name for name, field in Config.model_fields.items() if hasattr(field.annotation, "model_fields")]
FULL = {
    "seed": 3,
    "partition": {"rule": "column", "column": "room", "alpha": None, "clients": 12},
    "federation": {"cohort": 4, "cohort_local": 12},
    "activation": {
        "blocks": "all",
        "rule": "fixed",
        "capacity": [{"share": 0.25, "blocks": 1}, {"share": 0.75, "blocks": 6}],
    },
    "lora": {"targets": ["query", "attention.output.dense"], "alpha": 8},
    "training": {"learning_rate": 1e-05},
}


def fields(section: str) -> dict[str, FieldInfo]:
    """The keys of a section."""
    found: dict[str, FieldInfo] = getattr(Config.model_fields[section].annotation, "model_fields")  # noqa: B009
    return found


def refused(values: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(values, overrides)
    message = str(caught.value)
    assert message.isprintable(), f"more than one line: {message!r}"
    return message


@pytest.mark.parametrize("values", [{}, *({name: {}} for name in SECTIONS), FULL])
def test_a_config_dumped_to_yaml_loads_to_the_same(tmp_path, values):
    config = load_config(values)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(path) == config
    assert load_config(path).to_yaml() == config.to_yaml()


def test_the_dump_holds_every_key_with_its_default():
    dumped = yaml.safe_load(Config().to_yaml())
    assert list(dumped) == list(Config.model_fields)
    for name in SECTIONS:
        assert list(dumped[name]) == list(fields(name))


def test_with_sites_sums_over_few_samples_stay_there_unless_the_config_says_otherwise():
    sites = {"engine": {"name": "flower"}}
    assert load_config({}).statistics.least == load_config({"engine": {}}).statistics.least == 1
    assert (
        load_config(sites).statistics.least == load_config({}, ["engine.name=flower"]).statistics.least == 5
    )
    assert load_config(sites | {"statistics": {"anchor": 1}}).statistics.least == 5
    assert load_config(sites | {"statistics": {"least": 2}}).statistics.least == 2


def test_every_key_is_documented():
    for key, field in Config.model_fields.items():
        assert field.description, key
    for name in SECTIONS:
        for key, field in fields(name).items():
            assert field.description, f"{name}.{key}"


def test_overrides_reach_into_sections_and_the_last_one_wins():
    values = {"seed": 1, "lora": {"rank": 4}}
    config = load_config(
        values,
        [
            "seed=7",
            "lora.rank=2",
            "lora.rank=16",
            "activation.blocks=all",
            "lora.targets=[key, value]",
            "data.text=a=b",
        ],
    )
    assert (config.seed, config.lora.rank, config.activation.blocks) == (7, 16, "all")
    assert (config.lora.targets, config.data.text) == (("key", "value"), "a=b")
    assert values == {"seed": 1, "lora": {"rank": 4}}


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", "1.0e-3", "0.001", "1.e-3"])
def test_numbers_with_an_exponent_are_numbers_in_files_and_overrides(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(f"training: {{learning_rate: {text}}}", encoding="utf-8")
    assert load_config(path).training.learning_rate == 0.001
    assert load_config({}, [f"training.learning_rate={text}"]).training.learning_rate == 0.001


def test_words_that_only_look_like_numbers_stay_words():
    assert load_config({}, ["data.source=1e-3x", "data.label=e5"]).data.source == "1e-3x"


def test_an_empty_file_is_the_default_experiment(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("# nothing\n", encoding="utf-8")
    assert load_config(path) == Config()


def test_a_cohort_has_ten_clients_or_all_where_there_are_fewer():
    sizes = {n: load_config({"partition": {"clients": n}}).federation for n in (3, 10, 20)}
    assert [each.cohort_size("global", n) for n, each in sizes.items()] == [3, 10, 10]
    assert [each.cohort_size("local", n) for n, each in sizes.items()] == [3, 10, 20]
    chosen = load_config({"federation": {"cohort": 12, "cohort_local": 4}}).federation
    assert (chosen.cohort_size("global", 20), chosen.cohort_size("local", 20)) == (12, 4)


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        setattr(Config(), "seed", 1)  # noqa: B010 (mypy knows that the field is read-only)


WRONG = [
    # unknown keys: the message lists the keys of the section
    ({"sead": 1}, ("sead: unknown key", "seed", "method", "gate")),
    ({"modle": {}}, ("modle: unknown key", "model")),
    ({"model": {"nam": "x"}}, ("model.nam: unknown key", "name", "max_length", "image_size")),
    ({"data": {"txt": "x"}}, ("data.txt: unknown key", "source", "limit")),
    ({"federation": {"rounds": 1}}, ("federation.rounds: unknown key", "rounds_global", "rounds_local")),
    (
        {"activation": {"capacity": [{"share": 1.0, "blocks": 1, "x": 1}]}},
        ("activation.capacity.0.x: unknown key", "share", "blocks"),
    ),
    # choices: the message lists the allowed values
    ({"device": "tpu"}, ("device:", "'cpu'", "'cuda'", "'tpu'")),
    ({"model": {"pooling": "max"}}, ("model.pooling:", "'auto'", "'mean'", "'cls'")),
    ({"partition": {"rule": "iid"}}, ("partition.rule:", "'dirichlet'", "'classes'", "'column'", "'equal'")),
    (
        {"federation": {"aggregation": "median"}},
        ("federation.aggregation:", "'average'", "'exact'", "'freeze-a'"),
    ),
    ({"activation": {"rule": "never"}}, ("activation.rule:", "'plateau'", "'every'", "'fixed'")),
    ({"activation": {"order": "up"}}, ("activation.order:", "'top-down'", "'bottom-up'")),
    ({"head": {"kind": "mlp"}}, ("head.kind:", "'statistics'", "'text-init'", "'text'", "'linear'")),
    ({"gate": {"objective": "x"}}, ("gate.objective:", "'own-or-everyone'", "'likelihood'")),
    ({"gate": {"evidence": None}}, ("gate.evidence:", "'statistics'", "'counts'", "'none'")),
    ({"gate": {"share": "some"}}, ("gate.share:", "'adapter'", "'none'", "'all'")),
    ({"mixture": {"on": "features"}}, ("mixture.on:", "'probabilities'", "'logits'")),
    ({"engine": {"name": "ray"}}, ("engine.name:", "'local'")),
    ({"engine": {"stack": 2}}, ("engine.stack: more than 1 needs `deterministic: false`",)),
    # types are not converted
    ({"seed": "1"}, ("seed:", "integer", "'1'")),
    ({"seed": True}, ("seed:", "integer", "True")),
    ({"seed": 1.5}, ("seed:", "integer")),
    ({"method": 3}, ("method:", "string")),
    ({"model": "minilm"}, ("model:", "'minilm'")),
    ({"federation": None}, ("federation:", "None")),
    ({"lora": {"targets": "query"}}, ("lora.targets:", "'query'")),
    ({"lora": {"targets": ["query", 1]}}, ("lora.targets.1:", "string")),
    ({"gate": {"network": "yes"}}, ("gate.network:", "boolean")),
    ({"training": {"learning_rate": "1e-3"}}, ("training.learning_rate:", "number")),
    ({"activation": {"capacity": {"share": 1.0}}}, ("activation.capacity:",)),
    ({"activation": {"capacity": [{"share": 1.0}]}}, ("activation.capacity.0.blocks:", "required")),
    ({"federation": {1: 2}}, ("federation.1:",)),
    # ranges
    ({"seed": -1}, ("seed:", "equal to 0", "-1")),
    ({"model": {"max_length": 3}}, ("model.max_length:", "equal to 4")),
    ({"model": {"image_size": 8}}, ("model.image_size:", "equal to 16")),
    ({"data": {"limit": 0}}, ("data.limit:", "equal to 1")),
    ({"partition": {"alpha": 0.0}}, ("partition.alpha:", "greater than 0")),
    ({"partition": {"validation": 0.5}}, ("partition.validation:", "less than 0.5")),
    ({"partition": {"min_samples": 2}}, ("partition.min_samples:", "equal to 3")),
    ({"federation": {"cohort": 0}}, ("federation.cohort:", "equal to 1")),
    ({"federation": {"quorum": 0}}, ("federation.quorum:", "equal to 1")),
    ({"federation": {"attempts": 0}}, ("federation.attempts:", "equal to 1")),
    ({"federation": {"oversample": -1}}, ("federation.oversample:", "equal to 0")),
    ({"federation": {"deadline_seconds": 0}}, ("federation.deadline_seconds:", "greater than 0")),
    ({"training": {"batch_size": 0}}, ("training.batch_size:", "equal to 1")),
    ({"training": {"learning_rate": -1e-3}}, ("training.learning_rate:", "greater than 0")),
    ({"activation": {"queue": 1}}, ("activation.queue:", "equal to 2")),
    ({"activation": {"blocks": 0}}, ("activation.blocks:", "at least 1", "all")),
    ({"statistics": {"shrinkage": 1.1}}, ("statistics.shrinkage:", "at most 1", "`auto`", "1.1")),
    ({"statistics": {"shrinkage": True}}, ("statistics.shrinkage:", "at most 1", "`auto`", "True")),
    ({"statistics": {"anchor": -1}}, ("statistics.anchor:", "equal to 0")),
    ({"head": {"label_prior": 0}}, ("head.label_prior:", "above 0", "`none`")),
    ({"head": {"label_prior": "some"}}, ("head.label_prior:", "above 0", "`none`", "some")),
    ({"activation": {"blocks_local": -1}}, ("activation.blocks_local:", "at least 0", "`all`")),
    ({"gate": {"prior": 1.01}}, ("gate.prior:", "equal to 1")),
    ({"gate": {"prior": float("nan")}}, ("gate.prior:", "nan")),
    ({"cache": {"memory_mb": -1}}, ("cache.memory_mb:", "equal to 0")),
    ({"engine": {"workers": 0}}, ("engine.workers:", "equal to 1")),
    ({"plugins": "my_methods"}, ("plugins:", "valid tuple", "my_methods")),
    ({"plugins": ["my methods"]}, ("plugins: ", "must be the name of a module", "my methods")),
    ({"plugins": ["my_methods/gates.py"]}, ("plugins: ", "must be the name of a module", "gates.py")),
    ({"plugins": [".gates"]}, ("plugins: ", "must be the name of a module", ".gates")),
    ({"plugins": [1]}, ("plugins.0:", "valid string")),
    # combinations
    ({"partition": {"clients": 5}, "federation": {"cohort": 6}}, ("federation.cohort: 6", "clients (5)")),
    ({"federation": {"cohort_local": 21}}, ("federation.cohort_local:", "partition.clients")),
    ({"federation": {"quorum": 11}}, ("federation.quorum: 11 is more than federation.cohort (10)",)),
    (
        {"federation": {"quorum": 4, "cohort_local": 3}},
        ("federation.quorum: 4 is more than federation.cohort_local (3)",),
    ),
    ({"partition": {"rule": "column"}}, ("partition.column:", "needed")),
    ({"partition": {"alpha": None}}, ("partition.alpha:", "needed")),
    ({"gate": {"evidence": "none", "network": False}}, ("gate.network:", "gate.evidence")),
    ({"gate": {"objective": "likelihood", "network": False}}, ("gate.network:", "gate.objective")),
    (
        {"statistics": {"second_moment": False, "shrinkage": 0.5}},
        ("statistics.shrinkage:", "must be 1 or `auto`", "second_moment"),
    ),
    (
        {"gate": {"evidence": "posterior", "features": "backbone"}},
        ("gate.evidence:", "`posterior`", "gate.features: global"),
    ),
    ({"activation": {"min_rounds": 9}}, ("activation.min_rounds:", "max_rounds")),
    ({"activation": {"capacity": [{"share": 0.5, "blocks": 1}]}}, ("activation.capacity:", "add up to 1")),
    # several errors: the first, and the number of the others
    ({"seed": "x", "device": "tpu"}, ("seed:", "(and 1 more)")),
    # a choice of a number or a word
    (
        {"activation": {"blocks": "al"}},
        ("activation.blocks: should be a whole number of at least 1, or `all`, not 'al'",),
    ),
    (
        {"activation": {"blocks": 1.5}},
        ("activation.blocks:", "whole number of at least 1", "`all`", "not 1.5"),
    ),
    ({"activation": {"blocks": True}}, ("activation.blocks:", "whole number")),
    ({"activation": {"blocks": None}}, ("activation.blocks:", "whole number")),
    # values that would break the line of the message
    ({"training": {"learning_rate": float("inf")}}, ("training.learning_rate:", "finite", "inf")),
    ({"a\nb": 1}, ("'a\\nb': unknown key",)),
    ({"model": {"a\nb": 1}}, ("model.'a\\nb': unknown key",)),
]


@pytest.mark.parametrize(
    ("values", "words"), WRONG, ids=lambda value: repr(value)[:60] if isinstance(value, dict) else ""
)
def test_a_wrong_config_is_one_line_that_names_the_key_and_what_is_allowed(values, words):
    message = refused(values)
    assert message.startswith(words[0])
    assert all(word in message for word in words)


def test_a_long_value_or_key_is_cut():
    assert len(refused({"seed": "long" * 1000})) < 200
    assert len(refused({"seed": ["long"] * 1000})) < 200
    assert len(refused({"device": "long" * 1000})) < 200
    assert len(refused({"gate": {"long" * 1000: 1}})) < 300
    assert len(refused({}, "seed=" + "long" * 1000)) < 200


OVERRIDES = [
    ("seed", "KEY=VALUE"),
    ("=1", "KEY=VALUE"),
    ("seed=[", "not valid YAML"),
    ("model.name.x=1", "name is a value"),
    ("lora.rnk=1", "lora.rnk: unknown key; allowed: rank"),
    ("nothing.here=1", "nothing: unknown key"),
    ("seed=1e3", "seed: "),
    ("seed=", "seed: "),
    ("model=minilm", "model: "),
    ("model={name: x, name: y}", "key name comes twice"),
    ("model=&a [*a]", "not valid YAML"),
    ("se\ned", "KEY=VALUE"),
    ("se\ned=1", r"'se\ned': unknown key"),
    ("model.name.\n.x=1", "name is a value"),
    ("seed=" + 3000 * "[", "nested too deeply"),
    ("seed=2024-99-99", "not valid YAML"),
]


@pytest.mark.parametrize(("override", "word"), OVERRIDES)
def test_a_wrong_override_is_one_line(override, word):
    assert word in refused({"model": {"name": "x"}}, override)


FILES = [
    (b"seed: [", "line 1"),
    (b"a: 1\n\tb: 2\n", "line 2"),
    (b"- seed\n", "mapping"),
    (b"just words", "mapping"),
    (b"1: 2\n", "mapping"),
    (b"seed: \xff\xfe", "UTF-8"),
    (b"seed: \x00", "not valid YAML"),
    (b"seed: !!python/object/apply:os.getcwd []", "not valid YAML"),
    (b"data: &a\n  text: *a\n", "line 1: found unconstructable recursive node"),
    (b"&a\ndata: *a\n", "recursive"),
    (b"data: &a [*a]\n", "recursive"),
    (b"seed: " + 3000 * b"[", "nested too deeply"),
    (b"seed: 1\nmodel: {}\nseed: 2\n", "line 3: key seed comes twice"),
    (b"data:\n  text: a\n  text: a\n", "line 3: key text comes twice"),
    (b"? 'a\n\n  b'\n: 1\n? 'a\n\n  b'\n: 1\n", "comes twice"),
    (b"data: !!map [1]\n", "not valid YAML"),
    (b"data: {limit: 0x_}\n", "not valid YAML"),
]


@pytest.mark.parametrize(("content", "word"), FILES)
def test_a_file_that_is_no_config_is_one_line_that_names_the_file(tmp_path, content, word):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).isprintable()
    assert "config.yaml" in str(caught.value)
    assert word in str(caught.value)


def test_anchors_and_merged_keys_are_no_repetition(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "federation: &a {cohort: 2}\nmixture: &b {}\nlora: {<<: *b, rank: 4}\n"
        "training: {<<: &c {epochs: 2}, epochs: 3}\n"
    )
    assert load_config(path).training.epochs == 3


@pytest.mark.parametrize("place", ["nothing.yaml", "."])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, place):
    with pytest.raises(FedmsError) as caught:
        load_config(tmp_path / place)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 1
    assert str(caught.value).isprintable()
