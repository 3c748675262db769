"""The backbone: the features of transformers, runs from any block upward, and pairs that can be attached."""

import pytest
import torch
import transformers

from fedms.config.sections import LoraConfig, ModelConfig
from fedms.core.errors import ConfigError
from fedms.model.arrays import is_real
from fedms.model.backbone import Backbone, ragged
from fedms.model.checkpoints import load_backbone
from fedms.model.expert import Expert
from fedms.model.families import FAMILIES
from fedms.model.heads import zero_head
from fedms.model.parts import fresh_lora

TEXT = ("bert", "roberta")
IMAGE = ("vit", "deit", "dinov2", "clip_vision_model", "clip")
LENGTHS = torch.tensor([7, 3, 9, 2])


def opened(folder, **keys) -> Backbone:
    return load_backbone(ModelConfig(name=str(folder), **keys), LoraConfig())


def token_ids(lengths, pad):
    """Random ids above the special ones, padded to the longest."""
    ids = torch.randint(5, 40, (len(lengths), int(lengths.max())), generator=torch.Generator().manual_seed(1))
    return ids.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], pad)


def pixels(size, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def inputs_for(family):
    if family in TEXT:
        return token_ids(LENGTHS, pad=1 if family == "roberta" else 0), ragged(LENGTHS, int(LENGTHS.max()))
    return pixels(32), None


@torch.no_grad()
def reference(folder, family, inputs):
    """The features of transformers' own forward pass, pooled as fedms pools them."""
    if family in TEXT:
        real = (torch.arange(inputs.shape[1]) < LENGTHS[:, None]).long()
        hidden = transformers.AutoModel.from_pretrained(folder)(
            input_ids=inputs, attention_mask=real
        ).last_hidden_state
        return torch.stack([line[:length].mean(0) for line, length in zip(hidden, LENGTHS, strict=True)])
    resized = {} if inputs.shape[-1] == 32 or family == "dinov2" else {"interpolate_pos_encoding": True}
    if family == "clip":
        return (
            transformers.CLIPModel.from_pretrained(folder).get_image_features(inputs, **resized).pooler_output
        )
    if family == "clip_vision_model":
        return transformers.CLIPVisionModelWithProjection.from_pretrained(folder)(
            inputs, **resized
        ).image_embeds
    return transformers.AutoModel.from_pretrained(folder)(inputs, **resized).last_hidden_state[:, 0]


@pytest.mark.parametrize("family", TEXT + IMAGE)
@torch.no_grad()
def test_the_feature_is_what_transformers_gives(checkpoint, family):
    backbone = opened(checkpoint(family))
    inputs, lengths = inputs_for(family)
    expected = reference(checkpoint(family), family, inputs)
    feature = backbone.feature(inputs, lengths)
    assert feature.shape == (len(inputs), backbone.feature_size)
    assert expected.std(0).mean() > 0.01, "the samples are all alike, so any feature would pass"
    torch.testing.assert_close(feature, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", IMAGE)
@pytest.mark.parametrize("size", [48, 20])
@torch.no_grad()
def test_pictures_of_another_size_get_interpolated_positions(checkpoint, family, size):
    backbone = opened(checkpoint(family))
    feature = backbone.feature(pixels(size), None)
    torch.testing.assert_close(
        feature, reference(checkpoint(family), family, pixels(size)), atol=2e-5, rtol=1e-4
    )


@torch.no_grad()
def test_a_full_clip_gives_the_features_of_its_image_tower_alone(checkpoint, tmp_path):
    full = transformers.CLIPModel.from_pretrained(checkpoint("clip"))
    assert isinstance(full.config.vision_config, transformers.CLIPVisionConfig)
    tower = transformers.CLIPVisionModelWithProjection(full.config.vision_config)
    tower.vision_model.load_state_dict(full.vision_model.state_dict())
    tower.visual_projection.load_state_dict(full.visual_projection.state_dict())
    tower.save_pretrained(tmp_path)
    of_full, of_tower = opened(checkpoint("clip")), opened(tmp_path)
    assert torch.equal(of_full.feature(pixels(32), None), of_tower.feature(pixels(32), None))
    assert of_full.parameter_count == of_tower.parameter_count == sum(p.numel() for p in tower.parameters())


@pytest.mark.parametrize("family", TEXT + IMAGE)
@torch.no_grad()
def test_running_in_two_parts_equals_one_run(checkpoint, family):
    backbone = opened(checkpoint(family))
    inputs, lengths = inputs_for(family)
    hidden = backbone.embed(inputs)
    whole = backbone.run(hidden, lengths)
    assert hidden.shape == whole.shape == (len(inputs), hidden.shape[1], backbone.width)
    for boundary in range(backbone.depth + 1):
        assert torch.equal(backbone.run(backbone.run(hidden, lengths, 0, boundary), lengths, boundary), whole)
    assert not torch.equal(backbone.run(hidden, lengths, 1), whole)


@pytest.mark.parametrize("family", TEXT)
@torch.no_grad()
def test_padding_does_not_change_a_text(checkpoint, family):
    backbone = opened(checkpoint(family))
    inputs, lengths = inputs_for(family)
    together = backbone.feature(inputs, lengths)
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(
            backbone.feature(inputs[row : row + 1, :length], None)[0], together[row], atol=2e-5, rtol=1e-4
        )


@torch.no_grad()
def test_pooling_can_be_chosen(checkpoint):
    ids, lengths = inputs_for("bert")
    first = opened(checkpoint("bert"), pooling="cls")
    hidden = first.run(first.embed(ids), lengths)
    assert torch.equal(first.feature(ids, lengths), hidden[:, 0])
    mean = opened(checkpoint("vit"), pooling="mean")
    hidden = transformers.AutoModel.from_pretrained(checkpoint("vit"))(pixels(32)).last_hidden_state
    torch.testing.assert_close(mean.feature(pixels(32), None), hidden.mean(1), atol=2e-5, rtol=1e-4)


def test_lengths_are_none_where_nothing_is_padded():
    assert ragged(torch.tensor([4, 4]), 4) is None
    lengths = ragged(torch.tensor([4, 2]), 4)
    assert lengths is not None
    assert is_real(lengths, 4).tolist() == [[True] * 4, [True, True, False, False]]


@pytest.mark.parametrize("family", TEXT + IMAGE)
def test_every_family_is_frozen_and_says_its_sizes(checkpoint, family):
    backbone = opened(checkpoint(family))
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.model.modules() if isinstance(m, torch.nn.Dropout))
    assert (backbone.depth, backbone.width) == (3, 32)
    assert backbone.kind == ("text" if family in TEXT else "image")
    assert set(backbone.layers) == {
        (block, target) for block in range(3) for target in FAMILIES[family].targets
    }
    assert backbone.shape(backbone.targets[0]) == (32, 32)
    assert backbone.block_linear_weights == 4 * 32 * 32 + 2 * 32 * 64


# pairs


def expert_on(backbone, blocks, trained=True):
    """An expert with pairs that change the outputs."""
    arrays = fresh_lora(backbone, blocks, rank=4, seed=0)
    for name in arrays:
        if name.endswith("lora_B"):
            arrays[name] = torch.randn(arrays[name].shape, generator=torch.Generator().manual_seed(len(name)))
    expert = Expert(arrays | zero_head(3, backbone.feature_size), scale=2.0)
    if trained:
        expert.train(list(arrays))
    return expert


@pytest.mark.parametrize("family", TEXT + IMAGE)
@torch.no_grad()
def test_pairs_with_b_at_zero_change_no_bit(checkpoint, family):
    backbone = opened(checkpoint(family))
    inputs, lengths = inputs_for(family)
    bare = backbone.feature(inputs, lengths)
    expert = Expert(fresh_lora(backbone, range(3), rank=4, seed=0), scale=2.0)
    backbone.attach(expert.pairs())
    assert len(expert.pairs()) == 3 * len(backbone.targets)
    assert torch.equal(backbone.feature(inputs, lengths), bare)
    backbone.attach(expert_on(backbone, [1], trained=False).pairs())
    assert not torch.allclose(backbone.feature(inputs, lengths), bare, atol=1e-3)
    backbone.attach({})
    assert torch.equal(backbone.feature(inputs, lengths), bare)


@pytest.mark.parametrize("lowest", [0, 1, 2])
def test_nothing_below_the_lowest_active_block_is_in_the_graph(backbone, lowest):
    ids, lengths = inputs_for("bert")
    expert = expert_on(backbone, [lowest])
    backbone.attach(expert.pairs())
    hidden = backbone.embed(ids)
    for block in range(3):
        assert not hidden.requires_grad or block > lowest
        hidden = backbone.run(hidden, lengths, block, block + 1)
    assert hidden.requires_grad
    backbone.pool(hidden, lengths).square().sum().backward()
    gradients = [expert.arrays[name].grad for name in expert.arrays if name.startswith("block.")]
    assert len(gradients) == 2 * len(backbone.targets)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


def test_a_block_without_a_pair_has_nothing_to_train_and_gets_no_gradient(backbone):
    ids, lengths = inputs_for("bert")
    backbone.attach(expert_on(backbone, [0, 2]).pairs())
    assert all(backbone.layers[1, target].pair is None for target in backbone.targets)
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == 0
    backbone.feature(ids, lengths).square().sum().backward()
    assert all(p.grad is None for p in backbone.parameters())


# targets

BERT_LINEARS = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]


@pytest.mark.parametrize(
    ("target", "layer"),
    [
        ("query", "attention.self.query"),
        ("self.key", "attention.self.key"),
        ("attention.output.dense", "attention.output.dense"),
        ("output.dense", "output.dense"),
        ("intermediate.dense", "intermediate.dense"),
    ],
)
def test_a_target_is_a_dotted_ending(checkpoint, target, layer):
    backbone = load_backbone(ModelConfig(name=str(checkpoint("bert"))), LoraConfig(targets=(target,)))
    for number, block in enumerate(backbone.blocks):
        assert backbone.layers[number, target] is block.get_submodule(layer)
    assert len(backbone.layers) == 3
    base = backbone.layers[0, target].base
    assert backbone.shape(target) == (base.out_features, base.in_features)
    assert list(Expert(fresh_lora(backbone, [2], 2, 0), 1.0).pairs()) == [(2, target)]


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("dense", "fits more than one"),
        ("uery", "is not"),
        ("q_proj", "is not"),
        ("", "is not"),
        ("attention", "is not"),
    ],
)
def test_an_ambiguous_or_unknown_target_is_one_line_with_what_is_allowed(checkpoint, target, word):
    with pytest.raises(ConfigError) as caught:
        load_backbone(ModelConfig(name=str(checkpoint("bert"))), LoraConfig(targets=(target,)))
    message = str(caught.value)
    assert message.startswith(f"lora.targets: {target!r} {word}")
    assert all(name in message.partition("allowed:")[2] for name in BERT_LINEARS)
    assert message.isprintable()
