"""A run's config.yaml keeps the comments of the file that the user wrote."""

from pathlib import Path

import pytest

from fedms.config import load_config
from fedms.config.comments import commented
from fedms.config.examples import EXAMPLES, example_names
from fedms.config.yaml import load_yaml

MINE = """# my tickets
seed: 3   # the third

# who talks
model: {name: minilm, max_length: 32}

partition:
  rule: dirichlet   # label skew
  alpha: 0.5

  # as many as there are desks
  clients: 5
# nothing more
"""


def test_every_comment_stays_at_its_key_and_every_default_is_there():
    config = load_config(load_yaml(MINE), ["partition.alpha=0.25"])
    text = commented(config, MINE)
    assert load_yaml(text) == load_yaml(config.to_yaml())
    lines = text.splitlines()
    assert lines[0] == "# my tickets" and "seed: 3   # the third" in lines
    assert lines[lines.index("# who talks") + 1] == "model:"
    assert "  rule: dirichlet   # label skew" in lines and "  alpha: 0.25" in lines
    assert lines[lines.index("  # as many as there are desks") + 1] == "  clients: 5"
    assert text.count("#") == MINE.count("#")


@pytest.mark.parametrize("name", example_names())
def test_the_comments_of_an_example_stay(name):
    text = (EXAMPLES / f"{name}.yaml").read_text()
    config = load_config(name)
    kept = commented(config, text)
    assert load_yaml(kept) == load_yaml(config.to_yaml())
    assert kept.splitlines()[0] == text.splitlines()[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing but a comment\n",
        "data: &a {text: 'on'}\nlora: {rank: 4}\n",
        "gate:\nlog: ~\n",
        "log: {}\n",
    ],
    ids=["empty", "comment", "a word of YAML 1.1", "sections without keys", "an empty section"],
)
def test_any_config_reads_as_the_same(text):
    config = load_config({key: value for key, value in (load_yaml(text) or {}).items() if value})
    assert load_yaml(commented(config, text)) == load_yaml(config.to_yaml())


def test_a_run_writes_it(tmp_path: Path):
    from fedms.runs.folder import RunFolder

    config, folder = load_config(load_yaml(MINE)), RunFolder(tmp_path / "run")
    with folder.claimed(config, False, MINE):
        pass
    assert "# as many as there are desks" in (tmp_path / "run" / "config.yaml").read_text()
    assert folder.config() == config
    folder.admit(config, resume=True)
