"""PEFT's format: the same features and logits in PEFT as here, and the same arrays back."""

from __future__ import annotations

import json
import math

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fedms.config.sections import LoraConfig, ModelConfig
from fedms.core.errors import FedmsError
from fedms.federation.aggregation.products import exact
from fedms.federation.messages import Update
from fedms.model.backbone import ragged
from fedms.model.checkpoints import load_backbone, locate
from fedms.model.expert import Expert
from fedms.model.heads import head
from fedms.model.parts import fresh_lora
from fedms.model.peft import CONFIG, HEAD_CONFIG, HEAD_WEIGHTS, WEIGHTS, from_peft
from fedms.model.statistics import normalise
from fedms.runs.export.peft import to_peft, write_peft

LORA = LoraConfig(rank=4, alpha=6.0)
SCALE = LORA.alpha / LORA.rank
MANY = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
LENGTHS = torch.tensor([7, 3, 9, 2])
LABELS = ["off", "on", "play"]


def trained(backbone, blocks, generator, rank=LORA.rank):
    """An expert of these blocks in which nothing is zero."""
    arrays = fresh_lora(backbone, blocks, rank, 0) | head(
        torch.zeros(3, backbone.feature_size), log_scale=0.3
    )
    for name, array in arrays.items():
        if name.endswith(("lora_B", "head.weight", "head.bias")):
            arrays[name] = torch.randn(array.shape, generator=generator) * 0.2
    return arrays


def samples(backbone, generator):
    """Our inputs and mask, and what transformers wants for the same."""
    if backbone.kind == "image":
        pixels = torch.randn(3, 3, 32, 32, generator=generator)
        return pixels, None, {"pixel_values": pixels}
    ids = torch.randint(5, 40, (len(LENGTHS), int(LENGTHS.max())), generator=generator)
    real = (torch.arange(ids.shape[1]) < LENGTHS[:, None]).long()
    ids = ids * real  # the padding token is 0
    return ids, ragged(LENGTHS, ids.shape[1]), {"input_ids": ids, "attention_mask": real}


@torch.no_grad()
def ours(backbone, arrays, inputs, mask):
    expert = Expert(arrays, SCALE)
    backbone.attach(expert.pairs())
    features = backbone.feature(inputs, mask)
    return features, expert.logits(features)


@torch.no_grad()
def theirs(source, folder, given, loader=transformers.AutoModel):
    """What PEFT makes of the folder alone: pooled features, and logits by the head's files."""
    peft = pytest.importorskip("peft")
    model = peft.PeftModel.from_pretrained(loader.from_pretrained(source), str(folder)).eval()
    out = model(**given)
    how = json.loads((folder / HEAD_CONFIG).read_text())["pooling"]
    if "image_embeds" in out:
        features = out.image_embeds
    elif how == "cls":
        features = out.last_hidden_state[:, 0]
    else:
        real = given["attention_mask"][:, :, None]
        features = (out.last_hidden_state * real).sum(1) / real.sum(1)
    parts = load_file(folder / HEAD_WEIGHTS)
    return features, parts["log_scale"].exp() * (normalise(features) @ parts["weight"].T + parts["bias"])


def carriers(model):
    return {name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")}


@pytest.mark.parametrize(
    ("family", "blocks", "targets"),
    [
        ("bert", [1, 2], ()),
        ("bert", [0, 1, 2], MANY),
        ("vit", [2], ()),
        ("dinov2", [1, 2], ()),
        ("clip_vision_model", [0, 2], ()),
        ("clip", [1], ()),
    ],
)
def test_peft_computes_the_same(checkpoint, tmp_path, generator, family, blocks, targets):
    backbone = load_backbone(ModelConfig(name=str(checkpoint(family))), LoraConfig(targets=targets))
    arrays = trained(backbone, blocks, generator)
    inputs, mask, given = samples(backbone, generator)
    write_peft(tmp_path / "made", arrays, backbone, LORA, str(checkpoint(family)), LABELS)
    loader = (
        transformers.CLIPVisionModelWithProjection if family.startswith("clip") else transformers.AutoModel
    )
    expected = ours(backbone, arrays, inputs, mask)
    found = theirs(checkpoint(family), tmp_path / "made", given, loader)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    plain = ours(
        backbone, {name: array for name, array in arrays.items() if name.startswith("head.")}, inputs, mask
    )
    assert (plain[0] - expected[0]).abs().max() > 1e-2, "the pairs do nothing, so this would hold of any"


def test_peft_computes_the_same_for_minilm(tmp_path, generator):
    backbone = load_backbone(ModelConfig(), LoraConfig())
    arrays = trained(backbone, [3, 4, 5], generator)
    inputs, mask, given = samples(backbone, generator)
    write_peft(tmp_path / "made", arrays, backbone, LORA, locate("minilm"), LABELS)
    expected = ours(backbone, arrays, inputs, mask)
    torch.testing.assert_close(
        theirs(locate("minilm"), tmp_path / "made", given), expected, atol=1e-5, rtol=1e-5
    )


def test_exactly_our_layers_carry_pairs_in_peft(backbone, checkpoint, tmp_path, generator):
    peft = pytest.importorskip("peft")
    write_peft(tmp_path / "made", trained(backbone, [0, 2], generator), backbone, LORA, "tiny", LABELS)
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModel.from_pretrained(checkpoint("bert")), str(tmp_path / "made")
    )
    layers = {
        f"base_model.model.encoder.layer.{block}.attention.self.{target}"
        for block in (0, 2)
        for target in ("query", "value")
    }
    assert carriers(model) == layers
    assert model.peft_config["default"].task_type == "FEATURE_EXTRACTION"
    assert (model.peft_config["default"].r, model.peft_config["default"].lora_alpha) == (4, 6)


def test_what_goes_out_comes_back(backbone, tmp_path, generator):
    arrays = trained(backbone, [0, 2], generator)
    write_peft(tmp_path / "made", arrays, backbone, LORA, "tiny", LABELS)
    back = from_peft(tmp_path / "made", backbone, LORA)
    assert set(back) == set(arrays)
    assert all(torch.equal(back[name], arrays[name]) for name in arrays)


def test_a_residual_goes_out_as_a_higher_rank(backbone, checkpoint, tmp_path, generator):
    shared = trained(backbone, [1, 2], generator)
    updates = []
    for client in "ab":
        moved = {
            n: a + 0.2 * torch.randn(a.shape, generator=generator)
            for n, a in shared.items()
            if n.startswith("block.2.")
        }
        updates.append(Update(client, moved, 1))
    arrays = exact(shared, updates, SCALE)
    inputs, mask, given = samples(backbone, generator)
    write_peft(tmp_path / "made", arrays, backbone, LORA, "tiny", LABELS)
    config = json.loads((tmp_path / "made" / CONFIG).read_text())
    # the mean, and one direction per rank in which the two clients differ
    assert set(config["rank_pattern"].values()) == {8}
    assert set(config["rank_pattern"]) == {
        f"encoder.layer.2.attention.self.{target}" for target in ("query", "value")
    }
    expected = ours(backbone, arrays, inputs, mask)
    torch.testing.assert_close(
        theirs(checkpoint("bert"), tmp_path / "made", given), expected, atol=1e-5, rtol=1e-5
    )
    back = from_peft(tmp_path / "made", backbone, LORA)
    assert not any(name.endswith(".residual") for name in back)
    torch.testing.assert_close(ours(backbone, back, inputs, mask), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "more",
    [{}, {"use_rslora": True}, {"alpha_pattern": {"self.value": 3}, "rank_pattern": {"self.value": 2}}],
)
def test_adapters_that_peft_wrote_are_read(backbone, checkpoint, tmp_path, generator, more):
    """Of another scale and rank, layers named its own way."""
    peft = pytest.importorskip("peft")
    given = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["query", "value"],
        layers_to_transform=[0, 1],
        layers_pattern="layer",
        **more,
    )
    model = peft.get_peft_model(transformers.AutoModel.from_pretrained(checkpoint("bert")), given).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(str(tmp_path))
    arrays = from_peft(tmp_path, backbone, LORA) | head(torch.zeros(2, 32))
    inputs, mask, keys = samples(backbone, generator)
    real = keys["attention_mask"][:, :, None]
    with torch.no_grad():
        hidden = model(**keys).last_hidden_state
    torch.testing.assert_close(
        ours(backbone, arrays, inputs, mask)[0], (hidden * real).sum(1) / real.sum(1), atol=1e-5, rtol=1e-5
    )


def test_an_expert_without_pairs_is_refused(backbone):
    with pytest.raises(FedmsError, match="no LoRA pair"):
        to_peft(head(torch.zeros(2, 32)), backbone, LORA, "tiny")


def edit_config(folder, **values):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(folder, **values):
    path = folder / WEIGHTS
    tensors = load_file(path)
    first = next(iter(tensors))
    save_file(
        {name: values["put"](tensor) if name == first else tensor for name, tensor in tensors.items()}, path
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit_config(f, use_dora=True), "only plain LoRA"),
        (lambda f: edit_config(f, peft_type="IA3"), "only plain LoRA"),
        (lambda f: edit_config(f, init_lora_weights="pissa"), "only plain LoRA"),
        (lambda f: (f / CONFIG).write_text("{"), "not valid JSON"),
        (lambda f: (f / CONFIG).write_text("[]"), "not an adapter"),
        (lambda f: (f / CONFIG).unlink(), "cannot be read"),
        (lambda f: (f / WEIGHTS).unlink(), "cannot be read"),
        (lambda f: (f / WEIGHTS).write_bytes(b"\x00" * 9), "damaged"),
        (lambda f: edit_tensors(f, put=lambda t: t[:, :3].contiguous()), "misshapen"),
        (
            lambda f: save_file(
                {"base_model.model.encoder.layer.0.attention.self.key.lora_A.weight": torch.zeros(4, 32)},
                f / WEIGHTS,
            ),
            "targets",
        ),
        (
            lambda f: save_file(
                {"base_model.model.encoder.layer.0.attention.self.query.lora_A.weight": torch.zeros(4, 32)},
                f / WEIGHTS,
            ),
            "incomplete",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(backbone, tmp_path, generator, damage, message):
    folder = tmp_path / "made"
    write_peft(folder, trained(backbone, [0], generator), backbone, LORA, "tiny", LABELS)
    damage(folder)
    with pytest.raises(FedmsError, match=message) as caught:
        from_peft(folder, backbone, LORA)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "told",
    [
        {"lora_alpha": None},
        {"lora_alpha": "much"},
        {"lora_alpha": math.nan},
        {"alpha_pattern": 0.5},
        {"alpha_pattern": {"(": 4}},
    ],
)
def test_a_scale_that_is_none_is_one_line(tmp_path, backbone, told):
    lora = LoraConfig(rank=2)
    write_peft(tmp_path / "adapter", fresh_lora(backbone, [0], 2, 0), backbone, lora, "bert", [])
    config = tmp_path / "adapter" / CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | told))
    with pytest.raises(FedmsError, match=r"adapter_config\.json: lora_alpha or alpha_pattern"):
        from_peft(tmp_path / "adapter", backbone, lora)
