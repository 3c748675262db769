"""A packed batch gives what the texts give by themselves, and no padded token is computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedms.config.sections import LoraConfig, ModelConfig
from fedms.data.federated import Samples
from fedms.model import packing
from fedms.model.checkpoints import load_backbone
from fedms.model.expert import Expert
from fedms.model.heads import zero_head
from fedms.model.packing import Packing, chunks
from fedms.model.parts import fresh_lora
from fedms.training import runner as running
from fedms.training.inputs import TextInputs
from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import Runner
from tiny_models import word_tokenizer

TEXT = ("bert", "roberta")
LENGTHS = [3, 3, 5, 3, 9, 9, 9]


@pytest.fixture(params=["mean", "cls", "last"])
def packed(checkpoint, request):
    """From a family's name to the features of texts that are packed, and of each text by itself."""

    def features(family: str) -> tuple[torch.Tensor, torch.Tensor]:
        config = ModelConfig(name=str(checkpoint(family)), pooling=request.param)
        backbone = load_backbone(config, LoraConfig())
        torch.manual_seed(0)
        ids = [torch.randint(4, 40, (1, length)) for length in LENGTHS]
        padded = torch.cat([F.pad(each, (0, max(LENGTHS) - each.shape[1]), value=1) for each in ids])
        mask = Packing(LENGTHS)
        with torch.no_grad():
            hidden = backbone.run(mask.pack(backbone.embed(padded)), mask)
            assert hidden.shape == (1, sum(LENGTHS), 32)
            return backbone.pool(hidden, mask), torch.cat([backbone.feature(each, None) for each in ids])

    return features


@pytest.mark.parametrize("family", TEXT)
def test_a_packed_batch_gives_what_each_text_gives_by_itself(packed, family):
    made, expected = packed(family)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    assert (F.cosine_similarity(made.double(), expected.double()) > 1 - 1e-11).all()


def test_the_usual_attention_is_back_afterwards_even_after_a_failure(backbone):
    usual = backbone.model.config._attn_implementation
    with pytest.raises(RuntimeError):
        backbone.run(torch.ones(1, 4, 32), Packing([5]))
    assert backbone.model.config._attn_implementation == usual != packing.ATTENTION


def test_chunks_are_sorted_and_full_and_hold_every_position_once(monkeypatch):
    monkeypatch.setattr(packing, "TOKENS", 10)
    lengths = np.array([4, 30, 3, 5, 3, 12, 4])
    parts = chunks(lengths)
    assert [lengths[part].tolist() for part in parts] == [[3, 3, 4], [4, 5], [12], [30]]
    assert sorted(np.concatenate(parts)) == list(range(7))
    assert chunks(np.array([], dtype=np.int64)) == []


# owners and their outputs


@pytest.fixture
def texts() -> list[str]:
    draw = np.random.default_rng(0)
    words = ["turn", "on", "off", "the", "light", "music", "please"]
    return [" ".join(draw.choice(words, draw.integers(1, 20))) for _ in range(200)]


@pytest.fixture
def outputs(backbone, texts, tmp_path):
    """A new runner's outputs of these rows for an owner."""
    inputs = TextInputs(texts, word_tokenizer(), 24)

    def of(rows, boundary=1, expert=None, memory=2**30, before=()):
        runner = Runner(backbone, PrefixCache(backbone, inputs, memory, 0, tmp_path))
        for number, others in enumerate(before):
            runner.outputs(expert, Samples(f"before-{number}", others, torch.zeros(len(others))), boundary)
        return runner.outputs(expert, Samples("owner", np.asarray(rows), torch.zeros(len(rows))), boundary)

    return of


@pytest.fixture
def expert(backbone) -> Expert:
    pairs = {name: array + 0.05 for name, array in fresh_lora(backbone, [1, 2], 4, 0).items()}
    return Expert(pairs | zero_head(3, backbone.feature_size), 2.0)


@pytest.fixture
def padded_alone(backbone, outputs, monkeypatch):
    """As `outputs`, as a family would give that cannot be packed."""

    def of(*given, **named):
        with monkeypatch.context() as patch:
            patch.setattr(backbone, "family", replace(backbone.family, packs=False))
            return outputs(*given, **named)

    return of


@pytest.mark.parametrize("memory", [0, 2**30], ids=["without a cache", "cached"])
@pytest.mark.parametrize("boundary", [0, 1, 3])
def test_an_expert_gives_the_same_packed_and_padded(outputs, padded_alone, expert, boundary, memory):
    rows = np.random.default_rng(1).permutation(200)[:90]
    kept = Expert({n: a for n, a in expert.arrays.items() if boundary < 2 or not n.startswith("block")}, 2.0)
    for each in (None, kept):
        made, expected = (way(rows, boundary, each, memory) for way in (outputs, padded_alone))
        torch.testing.assert_close(made.features, expected.features, atol=1e-5, rtol=1e-5)


def test_what_the_others_hold_and_when_they_were_asked_changes_no_bit(outputs, expert):
    rows = np.arange(70)
    expected = outputs(rows, expert=expert)
    again = outputs(rows, expert=expert, before=[np.arange(60, 190), np.arange(3)])
    assert torch.equal(again.features, expected.features)
    assert again.logits is not None and expected.logits is not None
    assert torch.equal(again.logits, expected.logits)


def test_no_padded_token_is_computed(backbone, texts, outputs, expert, monkeypatch):
    seen = []
    dense = backbone.blocks[2].intermediate.dense
    assert isinstance(dense, nn.Linear)
    dense.register_forward_hook(lambda module, given, out: seen.append(given[0].shape))
    first = backbone.blocks[0].intermediate.dense
    first.register_forward_hook(lambda module, given, out: seen.append(given[0].shape))
    monkeypatch.setattr(packing, "TOKENS", 200)
    rows = np.arange(90)
    real = sum(len(texts[row].split()) + 2 for row in rows)
    outputs(rows, boundary=1, expert=expert)
    assert len(seen) > 4 and sum(batch * tokens for batch, tokens, _ in seen) == 2 * real


@pytest.mark.parametrize("what", ["prompt.tokens", "weight"])
def test_an_expert_that_needs_its_samples_apart_is_not_packed(backbone, outputs, expert, what, monkeypatch):
    asked = []
    monkeypatch.setattr(
        running.Runner, "_packed_feature", lambda self, *given: asked.append(given) or torch.ones(20, 32)
    )
    outputs(np.arange(20), expert=expert)
    assert len(asked) == 1
    if what == "weight":
        expert.weight = torch.ones(20)
        expert.arrays |= {f"beside.{name}": array for name, array in expert.arrays.items()}
    else:
        expert.arrays[what] = torch.zeros(2, 32)
    assert outputs(np.arange(20), expert=expert).logits.shape == (20, 3)
    assert len(asked) == 1
