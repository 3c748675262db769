"""Bad configs, `--set` and command lines: one line, exit code 2 (1 for a missing file), nothing written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml
from holding import one_line, tree
from typer.testing import CliRunner

from fedms.cli.main import app
from fedms.config import Config

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

FILES: dict[str, tuple[bytes, str]] = {
    "broken YAML": (b"seed: [", "not valid YAML at line 1"),
    "a tab": (b"model:\n\tname: x\n", "line 2"),
    "a list": (b"- seed\n", "a config is a mapping"),
    "a word": (b"seed", "a config is a mapping"),
    "a number": (b"3", "a config is a mapping"),
    "two documents": (b"seed: 1\n---\nseed: 2\n", "not valid YAML"),
    "a number for a key": (b"1: 2\n", "a config is a mapping"),
    "a null key": (b"~: 2\n", "a config is a mapping"),
    "a list for a key": (b"[1]: 2\n", "not valid YAML|mapping"),
    "a key twice": (b"seed: 1\nseed: 2\n", "line 2: key seed comes twice"),
    "a key twice, deep": (b"gate: {prior: 0.1, prior: 0.2}\n", "key prior comes twice"),
    "a key twice, quoted": (b"gate: {prior: 0.1, 'prior': 0.2}\n", "key prior comes twice"),
    "an unknown anchor": (b"seed: *nothing\n", "undefined alias"),
    "an anchor that holds itself": (b"compare: &a {variants: *a}\n", "not valid YAML"),
    "a billion laughs": (LAUGHS.encode(), "its aliases stand for too many values"),
    "a billion laughs where they fit": (
        b"compare: {tune: {gate.prior: " + b"[" * 20 + b"&a [1]" + b", *a]" * 20 + b"}}",
        "compare.tune",
    ),
    "a Python object": (b"seed: !!python/object/apply:os.system [echo]\n", "not valid YAML"),
    "a Python name": (b"seed: !!python/name:os.system\n", "not valid YAML"),
    "an unknown tag": (b"seed: !secret x\n", "not valid YAML"),
    "no date": (b"seed: 2024-99-99\n", "not valid YAML"),
    "a date": (b"seed: 2024-01-01\n", "seed: "),
    "binary": (bytes(range(128, 256)), "not a text file in UTF-8"),
    "NUL": (b"seed: \0", "not valid YAML"),
    "all NUL": (b"\0" * 100, "not valid YAML"),
    "an escape code": (b"seed: \x1b[31m", "not valid YAML"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), "not a text file in UTF-8"),
    "UTF-16 without a mark": ("seed: 1\n".encode("utf-16-le"), "not valid YAML"),
    "Latin-1": ("model: {name: é}".encode("latin-1"), "not a text file in UTF-8"),
    "a pickle": (b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00K\x01.", "not a text file in UTF-8"),
    "an archive": (b"PK\x03\x04\x14\x00\x00\x00\x00\x00", "not valid YAML"),
    "too many brackets": (b"seed: " + b"[" * 5000, "nested too deeply"),
    "too many levels": ("\n".join(" " * level + "a:" for level in range(900)).encode(), "nested too deeply"),
    "too large": (b"# " + b"x" * 2**20, "too large"),
    "a number of many digits": (b"seed: " + b"9" * 5000, "not valid YAML"),
}


@pytest.mark.parametrize(("content", "says"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_config(place, refused, content, says):
    (place / "bad.yaml").write_bytes(content)
    line = refused(["run", "bad.yaml"], 2)
    assert any(word in line for word in says.split("|")), line


def test_a_mark_of_byte_order_and_an_empty_file_are_configs(place):
    from fedms.config import load_config

    (place / "marked.yaml").write_bytes(b"\xef\xbb\xbfseed: 3\n")
    (place / "empty.yaml").write_bytes(b"")
    assert load_config("marked.yaml").seed == 3
    assert load_config("empty.yaml") == Config()


SECTIONS = [name for name, field in Config.model_fields.items() if hasattr(field.annotation, "model_fields")]
VALUES: dict[str, tuple[str, str]] = {
    # every section: an unknown key, and a value that is not a section
    **{
        f"unknown key in {name}": (f"{name}.nothing=1", f"{name}.nothing: unknown key; allowed: ")
        for name in SECTIONS
    },
    **{f"no section: {name}": (f"{name}=3", f"{name}: ") for name in SECTIONS},
    **{f"null for {name}": (f"{name}=null", f"{name}: ") for name in SECTIONS},
    "a template without a text": (
        "data.template=Intent:",
        "data.template: ",
    ),
    "a template of columns": ("data.template='{text} {title}'", "data.template: "),
    "a prompt without a class": ("head.prompt=[a photo]", "head.prompt"),
    "an unknown attention": ("model.attention=flash", "model.attention: "),
    "unknown section": ("modle={}", "modle: unknown key; allowed: seed, method"),
    "unknown method": ("method=fedmss", "method: 'fedmss' is not known; allowed: fedms, "),
    "empty method": ("method=''", "method: '' is not known"),
    "wrong types": ("federation.cohort=many", "federation.cohort: "),
    "a list for a number": ("seed=[1]", "seed: "),
    "a mapping for a number": ("seed={a: 1}", "seed: "),
    "a number in quotes": ("seed='1'", "seed: "),
    "true for a number": ("seed=true", "seed: "),
    "a fraction for a whole number": ("federation.cohort=1.5", "federation.cohort: "),
    "a number for a name": ("model.name=3", "model.name: "),
    "null for a name": ("model.name=null", "model.name: "),
    "null for a source": ("data.source=null", "data.source: "),
    "a list for a source": ("data.source=[a.csv]", "data.source: "),
    "a word for a truth": ("cache.enabled=yes please", "cache.enabled: "),
    "a number for a truth": ("gate.network=1", "gate.network: "),
    "a word for a list": ("lora.targets=query", "lora.targets: "),
    "null for a list": ("lora.targets=null", "lora.targets: "),
    "null among names": ("lora.targets=[null]", "lora.targets.0: "),
    "unknown device": ("device=tpu", "device: "),
    "unknown engine": ("engine.name=ray", "engine.name: "),
    "unknown rule": ("partition.rule=iid", "partition.rule: "),
    "unknown pooling": ("model.pooling=max", "model.pooling: "),
    "a choice in the wrong case": ("partition.rule=Equal", "partition.rule: "),
    "below the range": ("gate.prior=-0.1", "gate.prior: "),
    "above the range": ("gate.prior=1.5", "gate.prior: "),
    "not a number": ("gate.prior=.nan", "gate.prior: "),
    "infinite": ("training.learning_rate=.inf", "training.learning_rate: "),
    "minus infinity": ("partition.alpha=-.inf", "partition.alpha: "),
    "beyond floats": ("lora.alpha=1e999", "lora.alpha: "),
    "no clients": ("partition.clients=0", "partition.clients: "),
    "too many clients": ("partition.clients=1000001", "partition.clients: "),
    "a negative seed": ("seed=-1", "seed: "),
    "a huge seed": (f"seed={2**70}", "seed: should be at most"),
    "huge rounds": ("federation.rounds_global=10000000000", "federation.rounds_global: "),
    "huge rank": ("lora.rank=1000000", "lora.rank: "),
    "huge gate": ("gate.hidden=1000000000", "gate.hidden: "),
    "huge blocks": (f"activation.maximum={10**40}", "activation.maximum: should be at most"),
    "huge cache": (f"cache.memory_mb={10**40}", "cache.memory_mb: should be at most"),
    "huge text": ("model.max_length=100000", "model.max_length: "),
    "a huge image": ("model.image_size=100000", "model.image_size: "),
    "many workers": ("engine.workers=5000", "engine.workers: "),
    "no blocks": ("activation.blocks=0", "activation.blocks: "),
    "some blocks": ("activation.blocks=some", "activation.blocks: "),
    "too many blocks": ("activation.blocks=4", "activation.blocks: 4 is more than the 3 blocks"),
    "unknown layer": ("lora.targets=[nowhere]", "lora.targets: 'nowhere' is not a linear layer"),
    "more asked than there are": (
        "federation.cohort=5",
        "federation.cohort: 5 is more than partition.clients (3)",
    ),
    "no column": ("partition.rule=column", "partition.column: needed"),
    "no alpha": ("partition.alpha=null", "partition.alpha: needed"),
    "too many classes each": (
        "partition={rule: classes, clients: 3, classes_per_client: 9}",
        "partition.classes_per_client: 9",
    ),
    "tiers that do not add up": ("activation.capacity=[{share: 0.5, blocks: 1}]", "must add up to 1"),
    "a tier without blocks": ("activation.capacity=[{share: 1.0}]", "activation.capacity.0.blocks: "),
    "ranks without svd": ("lora.tiers=[{share: 1.0, rank: 1}]", "lora.tiers: "),
    "rounds the wrong way round": ("activation={min_rounds: 9, max_rounds: 2}", "activation.min_rounds: "),
    "a gate that knows nothing": ("gate={evidence: none, network: false}", "gate.network: "),
    "robust and svd": (
        "federation={cohort: 2, robust: median, aggregation: svd}",
        "federation.robust|federation.aggregation",
    ),
    "a key with a newline": ("gate={'a\\nb': 1}", "unknown key"),
    "a key of 1000 letters": ("gate={" + "k" * 1000 + ": 1}", "unknown key"),
    # --set itself
    "no value": ("seed", "--set seed: must be KEY=VALUE"),
    "no key": ("=1", "--set =1: must be KEY=VALUE"),
    "nothing": ("", "must be KEY=VALUE"),
    "a value that is no section": ("model.name.x=1", "name is a value, not a section"),
    "dots alone": ("..=1", "unknown key"),
    "broken YAML": ("seed=[", "--set seed=[: not valid YAML"),
    "an object": ("seed=!!python/object/apply:os.getcwd []", "not valid YAML"),
    "an empty value": ("seed=", "seed: "),
    "brackets": ("seed=" + "[" * 3000, "nested too deeply"),
    "half a character": ("method=\udcff", "not valid YAML"),
    "an escape code": ("method=\x1b[31mred", "not valid YAML|unacceptable"),
}


@pytest.mark.parametrize(("override", "says"), VALUES.values(), ids=VALUES)
def test_a_bad_value(refused, override, says):
    line = refused(["run", "good.yaml", "--set", override], 2)
    assert any(word in line for word in says.split("|")), line


COMPARED: dict[str, tuple[str, str]] = {
    "an unknown row": ("compare.methods=[nobody]", "nobody"),
    "a row twice": ("compare.methods=[local, local]", "comes twice"),
    "no rows": ("compare.methods=[]", "compare.methods: must name at least one"),
    "no seeds": ("compare.seeds=[]", "compare.seeds: must name at least one"),
    "a negative seed": ("compare.seeds=[-1]", "compare.seeds: must not be negative"),
    "a seed twice": ("compare.seeds=[1, 1]", "compare.seeds: 1 comes twice"),
    "an unknown baseline": ("compare.baseline=nobody", "compare.baseline: 'nobody' is not known"),
    "a variant named as a method": (
        "compare.variants={local: {gate.prior: 1}}",
        "compare.variants: 'local' is a method's name",
    ),
    "a variant with a slash": ("compare.variants={a/b: {}}", "cannot name a row"),
    "a variant that leads up": ("compare.variants={..: {}}", "cannot name a row"),
    "a variant with a way up": ("compare.variants={a..b: {}}", "cannot name a row"),
    "a hidden variant": ("compare.variants={.a: {}}", "cannot name a row"),
    "a variant without a name": ("compare.variants={'': {}}", "cannot name a row"),
    "a variant with NUL": ('compare.variants={"a\\0": {}}', "cannot name a row"),
    "a variant with a bell": ('compare.variants={"a\\a": {}}', "cannot name a row"),
    "a variant of blanks": ("compare.variants={' ': {}}", "cannot name a row"),
    "a variant with a backslash": ("compare.variants={'a\\b': {}}", "cannot name a row"),
    "a long variant": ("compare.variants={" + "v" * 65 + ": {}}", "cannot name a row"),
    "variants that differ in case": (
        "compare.variants={mine: {}, Mine: {}}",
        "mine and Mine differ in nothing",
    ),
    "variants that differ in form": ('compare.variants={"\\u00e9": {}, "e\\u0301": {}}', "differ in nothing"),
    "a variant with an unknown key": (
        "compare.variants={a: {gate.prio: 1}}",
        "compare.variants.a: gate.prio: unknown key",
    ),
    "a variant with another seed": ("compare.variants={a: {seed: 1}}", "seed must be the same"),
    "a grid with an unknown key": (
        "compare.tune={gate.prio: [1]}",
        "compare.tune.gate.prio: gate.prio: unknown key",
    ),
    "an empty grid": ("compare.tune={gate.prior: []}", "must name at least one"),
    "a grid without end": (
        "compare.tune={"
        + ", ".join(f"training.{key}: {[*range(1, 30)]}" for key in ("epochs", "batch_size", "proximal"))
        + "}",
        "compare.tune: has more than 10,000 combinations|should be a valid number",
    ),
    "a criterion": ("compare.criterion=accuracy", "compare.criterion: "),
}


@pytest.mark.parametrize(("override", "says"), COMPARED.values(), ids=COMPARED)
def test_a_bad_comparison(refused, override, says):
    line = refused(["compare", "good.yaml", "--set", override], 2)
    assert any(word in line for word in says.split("|")), line


LINES: dict[str, tuple[list[str], int, str]] = {
    "unknown command": (["nonsense"], 2, "no such command 'nonsense'"),
    "unknown option": (
        ["run", "good.yaml", "--no-such"],
        2,
        "no such option: --no-such; see fedms run --help",
    ),
    "unknown option before the command": (
        ["--no-such", "run"],
        2,
        "no such option: --no-such; see fedms --help",
    ),
    "run with two configs": (["run", "good.yaml", "good.yaml"], 2, "extra argument"),
    "compare without a config": (["compare"], 2, "missing argument 'CONFIG'"),
    "partition without a config": (["partition"], 2, "missing argument 'CONFIG'"),
    "report of nothing": (["report"], 2, "missing argument"),
    "predict without a client": (["predict", "."], 2, "missing option '--client'"),
    "predict without a folder": (["predict", "--client", "a"], 2, "missing argument 'DIR'"),
    "export without a place": (["export", ".", "--client", "a"], 2, "missing option '--to'"),
    "an option without its value": (["run", "good.yaml", "--out"], 2, "--out"),
    "a prior that is no number": (["predict", ".", "--client", "a", "--prior", "high", "x"], 2, "--prior"),
    "seeds that are no numbers": (
        ["compare", "good.yaml", "--seeds", "a,b"],
        2,
        "--seeds: must be whole numbers",
    ),
    "empty seeds": (["compare", "good.yaml", "--seeds", ""], 2, "--seeds: must be whole numbers"),
    "a seed twice": (["compare", "good.yaml", "--seeds", "1,1"], 2, "comes twice"),
    "an unknown row": (["compare", "good.yaml", "--methods", "fedms,nobody"], 2, "'nobody' is not known"),
    "empty methods": (["compare", "good.yaml", "--methods", ""], 2, "'' is not known"),
    "methods with a value": (["methods", "more"], 2, "extra argument"),
    "no such config": (["run", "nowhere.yaml"], 1, "nowhere.yaml: cannot read the config"),
    "a folder for a config": (["run", "."], 1, "cannot read the config"),
    "a config below a file": (["run", "good.yaml/x"], 1, "no such file, and no example of that name"),
    "a config with an endless name": (["run", "x" * 300], 1, "file name too long"),
    "compare without its config": (["compare", "nowhere.yaml"], 1, "nowhere.yaml: cannot read the config"),
    "partition without its config": (
        ["partition", "nowhere.yaml"],
        1,
        "nowhere.yaml: cannot read the config",
    ),
    "out is a file": (["run", "good.yaml", "--out", "good.yaml"], 1, "good.yaml: already there"),
    "out is below a file": (["run", "good.yaml", "--out", "good.yaml/run"], 1, "good.yaml/run: "),
    "out is where nothing can be": (["run", "good.yaml", "--out", "/proc/run"], 1, "/proc/run: "),
    "out is too long a name": (["run", "good.yaml", "--out", "new/" + "x" * 300], 1, "name too long"),
    "out is used": (["run", "good.yaml", "--out", "used"], 1, "used: already there and not empty"),
    "resume of a file": (
        ["run", "good.yaml", "--out", "good.yaml", "--resume"],
        1,
        "holds files that are no run's",
    ),
    "resume of something else": (
        ["run", "good.yaml", "--out", "used", "--resume"],
        1,
        "used: holds files that are no run's",
    ),
    "compare into a file": (["compare", "good.yaml", "--out", "good.yaml"], 1, "good.yaml: already there"),
    "compare into something else": (
        ["compare", "good.yaml", "--out", "used"],
        1,
        "used: already there and not empty",
    ),
    "a partition into a file": (
        ["partition", "good.yaml", "--write", "good.yaml"],
        1,
        "good.yaml: already there",
    ),
    "a partition into something else": (
        ["partition", "good.yaml", "--write", "used"],
        1,
        "used: already there",
    ),
    "a partition where nothing can be": (["partition", "good.yaml", "--write", "/proc/x"], 1, "/proc/x: "),
    "a partition into too long a name": (
        ["partition", "good.yaml", "--write", "new/" + "x" * 300],
        1,
        "name too long",
    ),
    "a picture of no kind": (
        ["partition", "good.yaml", "--out", "who.jpg"],
        2,
        "--out who.jpg: must end in .png",
    ),
    "a picture without a name": (
        ["partition", "good.yaml", "--out", "who"],
        2,
        "--out who: must end in .png",
    ),
    "a report of nothing there": (["report", "nowhere"], 1, "nowhere: no such folder"),
    "a report of a file": (["report", "good.yaml"], 1, "good.yaml: no such folder"),
    "predict from nothing": (["predict", "nowhere", "--client", "a", "x"], 1, "nowhere: no such folder"),
    "export of nothing": (
        ["export", "nowhere", "--client", "a", "--to", "there"],
        1,
        "nowhere: no such folder",
    ),
}


@pytest.mark.parametrize(("arguments", "code", "says"), LINES.values(), ids=LINES)
def test_a_bad_command_line(place, refused, arguments, code, says):
    (place / "used").mkdir()
    (place / "used" / "thesis.txt").write_text("mine")
    refused(arguments, code, says)


PICTURES: dict[str, tuple[str, str]] = {
    "below a file": ("good.yaml/who.png", "good.yaml: "),
    "a folder": ("used/who.png", "who.png: is a directory"),
    "too long a name": ("new/deep/" + "x" * 300 + ".png", "file name too long"),
}


@pytest.mark.parametrize(("out", "says"), PICTURES.values(), ids=PICTURES)
def test_a_picture_where_none_can_be(place, out, says):
    (place / "used" / "who.png").mkdir(parents=True)
    before = tree(place)
    done = CliRunner().invoke(app, ["partition", "good.yaml", "--out", out])
    assert done.exit_code == 1
    one_line(done.stderr, says)
    assert tree(place) == before


REAL = {
    "usage": (["nonsense"], 2),
    "a config": (["run", "bad.yaml"], 2),
    "laughs": (["run", "laughs.yaml"], 2),
    "a run": (["report", "."], 1),
    "a name in no encoding": (["run", os.fsdecode(b"\xff.yaml")], 1),
}


@pytest.mark.parametrize(("arguments", "code"), REAL.values(), ids=REAL)
def test_a_real_process_says_no_more_than_its_line(place, arguments, code):
    (place / "bad.yaml").write_text(yaml.safe_dump({"gate": {"prio": 1}}))
    (place / "laughs.yaml").write_text(LAUGHS)
    before = sorted(place.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "fedms.cli", *arguments], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    one_line(done.stderr)
    assert sorted(place.rglob("*")) == before
