"""What makes room for a large model: attention, the type it is loaded in, values computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from fedms.config.sections import LoraConfig, ModelConfig
from fedms.core.errors import ConfigError
from fedms.model import flops
from fedms.model.backbone import Backbone
from fedms.model.checkpoints import load_backbone, open_checkpoint
from fedms.model.expert import Expert
from fedms.model.parts import fresh_lora

RANK = 4
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
LENGTHS = torch.tensor([7, 3])


def saved(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, vocab_size=40, pad_token_id=0)
    model: Any = transformers.LlamaModel(config)
    with torch.no_grad():
        model.norm.weight.add_(torch.randn(32), alpha=0.1)
    model.to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama"))


@pytest.fixture(params=["found", "declared"])
def folder(request, llama, checkpoint) -> Path:
    return llama if request.param == "found" else checkpoint("bert")


def opened(folder: Path, attention: Any = "auto", dtype: torch.dtype = torch.float32) -> Backbone:
    return load_backbone(ModelConfig(name=str(folder), attention=attention), LoraConfig(), dtype)


def ids() -> torch.Tensor:
    drawn = torch.randint(5, 15, (2, 7), generator=torch.Generator().manual_seed(1))
    return drawn.masked_fill(torch.arange(7) >= LENGTHS[:, None], 0)


def expert_on(backbone: Backbone, seed: int = 0) -> Expert:
    arrays = fresh_lora(backbone, [1, 2], RANK, seed)
    for number, name in enumerate(arrays):
        if name.endswith("lora_B"):
            drawn = torch.Generator().manual_seed(number + seed)
            arrays[name] = 0.3 * torch.randn(arrays[name].shape, generator=drawn)
    return Expert(arrays, 2.0)


def gradients(backbone: Backbone, checkpointing: bool) -> list[torch.Tensor]:
    """Of two experts that ran one after the other before one backward pass."""
    backbone.checkpointing = checkpointing
    first, second = expert_on(backbone), expert_on(backbone, seed=7)
    leaves = [leaf for each in (first, second) for leaf in each.train(list(each.arrays))]
    with torch.no_grad():
        below = backbone.run(backbone.embed(ids(), LENGTHS), LENGTHS, 0, 1)
    loss = torch.zeros(())
    for each in (first, second):
        backbone.attach(each.pairs())
        loss = loss + backbone.pool(backbone.run(below, LENGTHS, 1), LENGTHS).square().sum()
    backbone.attach({})
    loss.backward()
    assert not any(layer.pair for layer in backbone.layers.values()), "what is attached stays attached"
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def test_gradients_are_the_same_to_the_bit_when_values_are_computed_again(folder):
    backbone = opened(folder)
    kept = gradients(backbone, checkpointing=False)
    calls: list[int] = []
    for (_, target), layer in backbone.layers.items():
        if target == backbone.targets[0]:
            layer.register_forward_pre_hook(lambda *call: calls.append(1))
    again = gradients(backbone, checkpointing=True)
    assert len(calls) == 1 + 2 * 2 * 2, "two experts' two active blocks run twice, the frozen one once"
    assert len(kept) == len(again) == 2 * 2 * 2 * len(backbone.targets), "A and B of each pair"
    assert all(torch.equal(*both) and both[0].abs().max() > 0 for both in zip(kept, again, strict=True))


def test_what_is_computed_again_is_booked(checkpoint):
    backbone = opened(checkpoint("bert"), "eager")
    backbone.checkpointing = True
    expert = expert_on(backbone)
    expert.train(list(expert.arrays))
    full = torch.randint(5, 15, (2, 24))
    with torch.no_grad():
        below = backbone.run(backbone.embed(full), None, 0, 1)
    backbone.attach(expert.pairs())
    feature = backbone.pool(backbone.run(below, None, 1), None).sum()
    with FlopCounterMode(display=False) as counter:
        feature.backward()
    expected = flops.backward(backbone, 2, 24, RANK, [1, 2]) + flops.pairs(backbone, 2, 24, RANK, [1, 2])
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_attention_is_as_the_config_says(folder):
    features, used = [], []
    for attention in ("auto", "eager", "sdpa"):
        backbone = opened(folder, attention)
        used.append(backbone.model.config._attn_implementation)  # type: ignore[union-attr]
        assert backbone.packs == (backbone.family.packs and used[-1] == "sdpa")
        with torch.no_grad():
            features.append(backbone.feature(ids(), LENGTHS))
    assert used == ["sdpa", "eager", "sdpa"]
    assert torch.equal(features[0], features[2])
    torch.testing.assert_close(features[1], features[0], atol=1e-5, rtol=1e-5)


def test_an_attention_that_a_family_lacks_is_one_line(tmp_path):
    transformers.MPNetModel(transformers.MPNetConfig(**SIZES, vocab_size=40)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^model\.attention: \S+ has no sdpa; allowed: auto, eager$"):
        opened(tmp_path, "sdpa")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_are_loaded_in_the_type_they_were_saved_in_if_that_is_asked_for(tmp_path, dtype):
    """And the model is the one that was loaded as float32 and converted, to the bit."""
    folder = saved(tmp_path, dtype)
    weights = open_checkpoint(str(folder)).load_weights(torch.bfloat16).parameters()
    wide = dtype != torch.bfloat16
    assert {each.dtype for each in weights} == {torch.float32 if wide else torch.bfloat16}
    half = opened(folder, dtype=torch.bfloat16).to_device("cpu", torch.bfloat16)
    converted = opened(folder).to_device("cpu", torch.bfloat16)
    for (name, one), other in zip(half.model.named_parameters(), converted.model.parameters(), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype, name
    with torch.no_grad():
        assert torch.equal(half.feature(ids(), LENGTHS), converted.feature(ids(), LENGTHS))


def test_a_picture_model_is_checked_in_half_precision(tmp_path):
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(**SIZES, image_size=16, patch_size=8)
    model: Any = transformers.SiglipVisionModel(config)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    backbone = opened(tmp_path, dtype=torch.bfloat16).to_device("cpu", torch.bfloat16)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert backbone.feature(pixels, None).dtype == torch.float32
