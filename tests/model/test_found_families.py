"""Families whose blocks are found: what fedms computes is what transformers does, from any block upward."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

from fedms.config.sections import LoraConfig, ModelConfig
from fedms.core.errors import ConfigError, FedmsError
from fedms.model.backbone import Backbone
from fedms.model.checkpoints import load_backbone, open_checkpoint
from fedms.model.expert import Expert
from fedms.model.families import FAMILIES
from fedms.model.parts import fresh_lora
from fedms.runs.export.peft import write_peft

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
LENGTHS = torch.tensor([7, 3, 9, 2])
LORA = LoraConfig(rank=4, alpha=8)
LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA | {"head_dim": 8},
    "gemma": LLAMA | {"head_dim": 8},
    "gemma2": LLAMA | {"head_dim": 8, "sliding_window": 4},
    "gemma3_text": LLAMA | {"head_dim": 8, "sliding_window": 4},
    "mistral": LLAMA | {"sliding_window": 4},
    "phi3": LLAMA,
    "smollm3": LLAMA,
    "mixtral": LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": LLAMA | MOE | {"head_dim": 8},
    "olmoe": LLAMA | MOE,
    "gpt_neox": ENCODER,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 40, "n_positions": 64},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "vocab_size": 40},
    "mpnet": ENCODER | {"pad_token_id": 1},
    "electra": ENCODER | {"embedding_size": 16},
    "deberta-v2": ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": ENCODER | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 4},
    "eurobert": LLAMA,
    "nomic_bert": ENCODER,
    "t5": {"d_model": 32, "d_kv": 8, "num_layers": 3, "num_heads": 4, "d_ff": 64, "vocab_size": 40},
}
VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
PICTURES: dict[str, dict[str, Any]] = {
    "dinov2_with_registers": VIT | {"mlp_ratio": 2},
    "dinov3_vit": VIT,
    "beit": VIT | {"use_relative_position_bias": True},
    "data2vec-vision": VIT,
    "siglip": {"vision_config": VIT, "text_config": ENCODER},
    "siglip_vision_model": VIT,
    "ijepa": VIT,
    "vit_msn": VIT,
    "aimv2_vision_model": VIT,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    """The folder of a tiny random model of a family, written once."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            config: Any = transformers.AutoConfig.for_model(family, **(CONFIGS | PICTURES)[family])
            model = transformers.T5EncoderModel(config) if family == "t5" else None
            (model or transformers.AutoModel.from_config(config)).save_pretrained(made[family])
        return made[family]

    return of


def opened(path: Path, **keys: Any) -> Backbone:
    return load_backbone(ModelConfig(name=str(path), **keys), LORA)


def page_row(family: str, backbone: Backbone) -> str:
    """The family's line in the table of docs/models.md."""
    targets = ", ".join(f"`{target}`" for target in backbone.usual_targets)
    cells = (f"`{family}`", backbone.kind, f"`{backbone.family.blocks}`", targets, backbone.pooling)
    return f"| {' | '.join(cells)} |"


def ids() -> torch.Tensor:
    drawn = torch.randint(5, 40, (4, 9), generator=torch.Generator().manual_seed(1))
    return drawn.masked_fill(torch.arange(9) >= LENGTHS[:, None], 0)


def expert_on(backbone: Backbone, blocks: list[int]) -> Expert:
    arrays = fresh_lora(backbone, blocks, LORA.rank, 0)
    for number, name in enumerate(arrays):
        if name.endswith("lora_B"):
            drawn = torch.Generator().manual_seed(number)
            arrays[name] = 0.3 * torch.randn(arrays[name].shape, generator=drawn)
    return Expert(arrays, LORA.alpha / LORA.rank)


@torch.no_grad()
def theirs(model: Any) -> torch.Tensor:
    real = (torch.arange(9) < LENGTHS[:, None]).long()
    return model(input_ids=ids(), attention_mask=real).last_hidden_state  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", CONFIGS)
def test_a_family_that_was_found(folder, family, tmp_path):
    path = folder(family)
    backbone = opened(path)
    assert page_row(family, backbone) in PAGE.splitlines()
    loader = transformers.T5EncoderModel if family == "t5" else transformers.AutoModel
    real = torch.arange(9) < LENGTHS[:, None]
    with torch.no_grad():
        hidden = backbone.embed(ids(), LENGTHS)
        whole = backbone.run(hidden, LENGTHS)
        for boundary in range(4):
            split = backbone.run(backbone.run(hidden, LENGTHS, 0, boundary), LENGTHS, boundary)
            assert torch.equal(split, whole)
        assert torch.equal(backbone.end(whole)[real], theirs(loader.from_pretrained(path))[real])
        together = backbone.feature(ids(), LENGTHS)
        for row, length in enumerate(LENGTHS):
            alone = backbone.feature(ids()[row : row + 1, :length], None)[0]
            torch.testing.assert_close(alone, together[row], atol=2e-5, rtol=1e-4)
    expert = expert_on(backbone, [1, 2])
    leaves = expert.train(list(expert.arrays))
    backbone.attach(expert.pairs())
    below = backbone.run(hidden, LENGTHS, 0, 1)
    assert not below.requires_grad
    feature = backbone.pool(backbone.run(below, LENGTHS, 1), LENGTHS)
    assert not torch.allclose(feature, together, atol=1e-4)
    feature.square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().max() > 0 for leaf in leaves)
    peft = pytest.importorskip("peft")
    write_peft(tmp_path / "out", expert.detached(), backbone, LORA, str(path), [])
    adapted = peft.PeftModel.from_pretrained(loader.from_pretrained(path), str(tmp_path / "out")).eval()
    with torch.no_grad():
        ours = backbone.end(backbone.run(below, LENGTHS, 1))
    torch.testing.assert_close(ours[real], theirs(adapted)[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", PICTURES)
def test_an_image_family_that_was_found(folder, family, tmp_path):
    path, pixels = folder(family), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    backbone = opened(path)
    assert page_row(family, backbone) in PAGE.splitlines()
    loader = transformers.SiglipVisionModel if family == "siglip" else transformers.AutoModel
    with torch.no_grad():
        hidden = backbone.embed(pixels)
        whole = backbone.run(hidden, None)
        for boundary in range(4):
            assert torch.equal(backbone.run(backbone.run(hidden, None, 0, boundary), None, boundary), whole)
        pretrained = loader.from_pretrained(path)(pixel_values=pixels).last_hidden_state
        assert torch.equal(backbone.end(whole), pretrained)
        feature = pretrained[:, 0] if backbone.pooling == "cls" else pretrained.mean(1)
        assert torch.equal(backbone.pool(whole, None), feature)
    expert = expert_on(backbone, [1, 2])
    leaves = expert.train(list(expert.arrays))
    backbone.attach(expert.pairs())
    below = backbone.run(hidden, None, 0, 1)
    adapted = backbone.run(below, None, 1)
    backbone.pool(adapted, None).square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().max() > 0 for leaf in leaves)
    assert not torch.allclose(backbone.end(adapted), pretrained, atol=1e-4)
    peft = pytest.importorskip("peft")
    write_peft(tmp_path / "out", expert.detached(), backbone, LORA, str(path), [])
    reloaded = peft.PeftModel.from_pretrained(loader.from_pretrained(path), str(tmp_path / "out")).eval()
    with torch.no_grad():
        again = reloaded(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(backbone.end(adapted), again, atol=1e-5, rtol=1e-5)
        half = opened(path).to_device("cpu", torch.bfloat16).feature(pixels, None)
    assert half.dtype == torch.float32
    assert F.cosine_similarity(half, feature).min() > 0.98


def test_the_page_lists_the_families_that_are_tested_and_no_others():
    listed = re.findall(r"^\| `([^`]+)` \| (?:text|image) \|", PAGE, flags=re.MULTILINE)
    assert sorted(listed) == sorted([*CONFIGS, *PICTURES])
    declared = [name for name, family in FAMILIES.items() if family.blocks]
    assert all(f"`{name}`" in PAGE for name in declared)


def test_what_makes_the_feature_of_an_image(folder):
    assert opened(folder("dinov3_vit")).pooling == "cls"
    assert opened(folder("siglip")).pooling == "mean"
    assert opened(folder("aimv2_vision_model")).pooling == "mean"  # its head alone has a class token


@torch.no_grad()
def test_pictures_of_two_shapes_with_as_many_tokens_are_not_mixed_up(folder):
    """Their positions differ, and hidden states do not say which they have."""
    for shape in ((32, 64), (64, 32)):
        pixels = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(1))
        backbone = opened(folder("dinov3_vit"))
        hidden = backbone.embed(pixels)
        expected = transformers.AutoModel.from_pretrained(folder("dinov3_vit"))(pixel_values=pixels)
        assert torch.equal(backbone.end(backbone.run(hidden, None)), expected.last_hidden_state)
    line = "pictures of 64 x 32 and of 32 x 64 pixels both have 33 tokens, .*; set model.image_size"
    with pytest.raises(FedmsError, match=line.replace("33", str(hidden.shape[1]))):
        backbone.embed(torch.zeros(1, 3, 32, 64))


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("swin", "its blocks differ in width; name a model whose blocks are alike, such as ViT, DINOv3"),
        ("swinv2", "its blocks differ in width"),
        ("convnext", "its blocks differ in width"),
        ("dinov3_convnext", "its blocks differ in width"),
        ("siglip2", "it reads pictures of any shape; name a SigLIP of one size"),
        ("vit_mae", "it hides patches at random"),
        ("albert", "its blocks are one and the same"),
    ],
)
def test_a_family_that_cannot_be_taken_apart(family, why, tmp_path):
    transformers.AutoConfig.for_model(family).save_pretrained(tmp_path)
    line = f"model {tmp_path}: family {family!r} cannot be taken apart: {why}"
    with pytest.raises(FedmsError, match=re.escape(line)):
        open_checkpoint(str(tmp_path))


def test_a_language_model_is_read_at_its_last_token(folder):
    assert opened(folder("llama")).pooling == "last"
    assert opened(folder("llama"), pooling="mean").pooling == "mean"
    assert opened(folder("distilbert")).pooling == "mean"


def test_only_the_experts_that_a_token_meets_are_counted(folder):
    backbone = opened(folder("qwen3_moe"))
    experts = backbone.blocks[0].get_submodule("mlp.experts")
    assert isinstance(experts, torch.nn.Module)
    held = sum(each.numel() for each in experts.parameters())
    attention = 2 * 32 * 32 + 2 * 32 * 16
    assert held == 4 * 3 * 32 * 16
    assert backbone.block_linear_weights == attention + held // 2


def test_blocks_can_be_named_by_hand(folder):
    assert opened(folder("llama"), blocks="layers").depth == 3
    with pytest.raises(ConfigError, match=r"model.blocks: 'h' is no list .* allowed: layers"):
        opened(folder("llama"), blocks="h")


def test_every_linear_layer_can_carry_a_pair(folder):
    backbone = load_backbone(ModelConfig(name=str(folder("llama"))), LoraConfig(targets=("all-linear",)))
    assert len(backbone.targets) == 7 and "mlp.down_proj" in backbone.targets


@torch.no_grad()
def test_in_half_precision_the_feature_is_nearly_the_same(folder):
    exact, half = opened(folder("llama")), opened(folder("llama")).to_device("cpu", torch.bfloat16)
    assert half.embed(ids()).dtype == torch.bfloat16
    feature = half.feature(ids(), LENGTHS)
    assert feature.dtype == torch.float32
    assert F.cosine_similarity(feature, exact.feature(ids(), LENGTHS)).min() > 0.99


CAUSAL = [*CONFIGS][: [*CONFIGS].index("distilbert")]


@pytest.mark.parametrize("family", CAUSAL)
def test_a_text_read_piece_by_piece_has_the_states_of_one_pass(folder, family):
    """Two experts with one cache below block 1, which neither trains, and two above it."""
    backbone = opened(folder(family))
    tokens = ids()[2]
    pairs = [expert_on(backbone, blocks).pairs() for blocks in ([1, 2], [2])]
    caches = [transformers.DynamicCache(config=backbone.model.config) for _ in pairs]
    pieces = [backbone.read_on(part, 1, caches, pairs) for part in torch.split(tokens, [4, 1, 1, 3])]
    for place, own in enumerate(pairs):
        backbone.attach(own)
        with torch.no_grad():
            whole = backbone.end(backbone.run(backbone.embed(tokens[None]), None))[0]
        found = torch.cat([piece[place] for piece in pieces])
        assert torch.allclose(found, whole, atol=2e-5), float((found - whole).abs().max())
