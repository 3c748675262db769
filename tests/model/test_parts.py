"""Parts: names, groups and rates follow from one class, and a new part is one class more."""

import pytest
import torch

from fedms.model import flops, parts
from fedms.model.arrays import block_of
from fedms.model.parts import (
    PARTS,
    Part,
    fresh_parts,
    group,
    part_of,
    rate_of,
    register_part,
    trained_names,
)

GROUPS = ("A", "B", "head", "attention", "prompt", "mixer")


class Scales(Part):
    """IA3: one factor for each output of a target."""

    prefix = "ia3."
    groups = ("scales",)

    def names(self, scope):
        return [f"ia3.{stem}.scale" for stem in scope.stems]

    def fresh(self, scope, start):
        size = scope.backbone.width
        return {name: torch.ones(size) for name in self.names(scope)}


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(parts, "PARTS", dict(PARTS))


def test_every_array_that_trains_belongs_to_the_group_it_was_asked_for(backbone):
    for each in GROUPS:
        names = trained_names(backbone, (each,), (0, 2), "linear")
        assert names
        assert {group(name) for name in names} == {each}


def test_several_groups_come_pair_by_pair_and_blocks_in_order(backbone):
    names = trained_names(backbone, ("head", "B", "A"), (2, 0), "text")
    stems = [f"block.{block}.{target}" for block in (0, 2) for target in backbone.targets]
    assert names == [f"{stem}.lora_{matrix}" for stem in stems for matrix in "AB"] + ["head.log_scale"]


def test_fresh_arrays_have_the_names_that_train(backbone):
    for each in ("attention", "prompt", "mixer"):
        fresh = fresh_parts(backbone, (each,), (1, 2), 3, 0)
        assert list(fresh) == trained_names(backbone, (each,), (1, 2), "linear")
    assert fresh_parts(backbone, ("A", "B", "head", "gate"), (1, 2), 3, 0) == {}


def test_only_the_head_has_the_heads_rate():
    assert rate_of("head.weight", (1.0, 2.0)) == 1.0
    for name in ("block.1.query.lora_A", "prompt.tokens", "gate.adapter.up"):
        assert rate_of(name, (1.0, 2.0)) == 2.0


def test_a_name_leads_to_its_part_and_block():
    prompt, mixer = part_of("prompt.tokens"), part_of("mixer.block.2.query.bias")
    assert prompt is not None and prompt.block("prompt.tokens") == flops.BELOW
    assert mixer is not None and mixer.block("mixer.block.2.query.bias") == 2
    assert part_of("gate.adapter.down") is None and group("gate.adapter.down") == "gate"
    assert part_of("beside.head.weight") is None


def test_a_new_part_is_one_class(backbone, registry):
    register_part(Scales())
    names = trained_names(backbone, ("A", "scales"), (1,), "linear")
    assert names[-2:] == ["ia3.block.1.query.scale", "ia3.block.1.value.scale"]
    assert list(fresh_parts(backbone, ("scales",), (1,), 0, 0)) == names[-2:]
    assert group(names[-1]) == "scales" and block_of(names[-1]) == 1
    with pytest.raises(ValueError, match="ia3"):
        register_part(Scales())


def test_a_group_of_no_part_is_refused(backbone):
    with pytest.raises(ValueError, match=r"'scales' belongs to no part; known: A, B, attention"):
        trained_names(backbone, ("A", "scales"), (1,), "linear")
    assert trained_names(backbone, ("gate",), (1,), "linear") == []
