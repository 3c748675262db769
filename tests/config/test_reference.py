"""The reference of all keys: complete, true to the config, and the source of docs/config.md."""

import json
from pathlib import Path

import pytest
import yaml

from fedms.config import load_config, reference
from fedms.core.errors import ConfigError


def test_the_page_is_made_from_the_config():
    page = Path(__file__).parents[2] / "docs" / "config.md"
    assert page.read_text(encoding="utf-8") == reference.markdown(), (
        "write it again: fedms config --markdown > docs/config.md"
    )


def test_every_key_has_a_meaning_and_a_kind():
    assert len(reference.all_keys()) > 80
    assert not [key.name for key in reference.all_keys() if not key.meaning or key.kind.startswith("value")]


def test_a_template_with_every_key_is_the_default_config():
    every = {key.name: json.loads(key.default) for key in reference.all_keys()}
    assert load_config(yaml.safe_load(reference.template(every))) == load_config({})
    assert yaml.safe_load(reference.template()) is None
    assert yaml.safe_load(reference.template({"gate.prior": 0.3})) == {"gate": {"prior": 0.3}}


def test_a_key_is_found_alone_or_by_its_section():
    assert [key.name for key in reference.named("gate.prior")] == ["gate.prior"]
    assert {"gate.prior", "gate.network"} <= {key.name for key in reference.named("gate")}
    with pytest.raises(ConfigError, match=r"no such key.*did you mean 'gate\.prior'"):
        reference.named("gate.prio")


def test_the_schema_knows_the_keys_of_each_section():
    schema = reference.json_schema()
    assert set(schema["properties"]) >= {"seed", "gate"} and schema["additionalProperties"] is False
    assert "prior" in schema["$defs"]["GateConfig"]["properties"]
