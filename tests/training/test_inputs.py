"""Inputs: batches with little padding, texts of a batch at one length, images of the configured size."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedms.config.sections import LoraConfig, ModelConfig
from fedms.core.errors import ConfigError, FedmsError
from fedms.data.sources import Dataset
from fedms.model.checkpoints import load_backbone
from fedms.training.inputs import ImageInputs, Inputs, TextInputs, batches, class_name_embeddings, inputs_for
from tiny_models import WORDS

TEXTS = [
    "turn on the light",
    "music off",
    "play the kitchen music louder please",
    "lights",
    "turn off the lights",
]
LENGTHS = [6, 4, 8, 3, 6]
WORD = {"[PAD]": 0, "[CLS]": 2, "[SEP]": 3, "music": 11, "off": 6}


def dataset(inputs, kind="text"):
    labels = np.arange(len(inputs)) % 2
    return Dataset(kind=kind, inputs=inputs, labels=labels, class_names=("a", "b"), columns={}, is_test=None)


def text_model(checkpoint, **keys):
    config = ModelConfig(name=str(checkpoint("bert")), **keys)
    return load_backbone(config, LoraConfig()), config


@pytest.fixture
def texts(checkpoint) -> Inputs:
    backbone, config = text_model(checkpoint)
    return inputs_for(dataset(TEXTS), backbone, config)


# batches


def waste(made, lengths) -> float:
    """Padding tokens per real token."""
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in made)
    return padded / int(lengths.sum()) - 1


@pytest.fixture
def lengths():
    return np.random.default_rng(1).integers(3, 40, 1003)


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(
    ("count", "size"), [(1003, 32), (1, 32), (32, 32), (33, 32), (7, 1), (600, 32), (5, 100)]
)
def test_every_position_comes_once_in_batches_that_are_not_too_large(lengths, count, size, seed):
    made = batches(lengths[:count], size, None if seed is None else np.random.default_rng(seed))
    assert sorted(np.concatenate(made).tolist()) == list(range(count))
    assert all(1 <= len(batch) <= size for batch in made)
    assert len(made) == -(-count // size)


def test_without_an_order_batches_are_sorted_by_length_and_equal_lengths_keep_their_order():
    made = batches(np.array([5, 3, 5, 3, 9]), 2)
    assert [batch.tolist() for batch in made] == [[1, 3], [0, 2], [4]]


def test_an_order_is_decided_by_the_generator(lengths):
    def flat(seed):
        return np.concatenate(batches(lengths, 32, np.random.default_rng(seed)))

    assert np.array_equal(flat(0), flat(0))
    assert not np.array_equal(flat(0), flat(1))


def test_an_order_mixes_lengths_over_time_and_neighbours_over_epochs(lengths):
    lengths = lengths[:512]  # one window, sorted within
    made = batches(lengths, 32, np.random.default_rng(0))
    means = np.array([lengths[batch].mean() for batch in made])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5
    again = next(batch for batch in batches(lengths, 32, np.random.default_rng(1)) if made[0][0] in batch)
    assert len(set(made[0]) & set(again)) < 16


def test_an_order_wastes_little_padding_against_random_batches(lengths):
    order = np.random.default_rng(0)
    random = np.array_split(order.permutation(len(lengths)), len(lengths) // 32)
    assert waste(random, lengths) > 0.6
    assert waste(batches(lengths, 32, order), lengths) < 0.1
    assert waste(batches(lengths, 32), lengths) < 0.05


# texts


def test_a_batch_is_padded_to_its_own_longest(texts):
    ids, lengths = texts.batch(np.array([1, 3]))
    assert ids.dtype == torch.int64
    assert ids[0].tolist() == [WORD["[CLS]"], WORD["music"], WORD["off"], WORD["[SEP]"]]
    assert ids.shape == (2, 4)
    assert ids[1, 3] == WORD["[PAD]"]
    assert lengths.tolist() == [4, 3]
    assert texts.batch(np.array([1, 2]))[0].shape == (2, 8)


@pytest.mark.parametrize("rows", [[0, 4], [2], [1, 1]])
def test_the_mask_is_none_where_nothing_is_padded(texts, rows):
    assert texts.batch(np.array(rows))[1] is None


def test_lengths_are_what_batches_will_hold_in_the_order_asked(texts):
    assert texts.lengths(np.array([3, 0, 2])).tolist() == [3, 6, 8]
    assert texts.lengths(np.arange(5)).tolist() == LENGTHS


def test_a_text_is_tokenised_once(checkpoint):
    calls = []

    class Counting:
        pad_token_id = 0

        def __call__(self, texts, **options):
            calls.append(texts)
            return {"input_ids": [[2, *range(5, 5 + len(text.split())), 3] for text in texts]}

    inputs = TextInputs(TEXTS, Counting(), 64)
    inputs.lengths(np.array([0, 1]))
    inputs.batch(np.array([1, 0, 2]))
    assert calls == [TEXTS[:2], TEXTS[2:3]]


def test_a_long_text_is_cut_and_an_empty_one_is_no_trouble(checkpoint):
    backbone, config = text_model(checkpoint, max_length=5)
    inputs = inputs_for(dataset(["the light " * 50, ""]), backbone, config)
    ids, lengths = inputs.batch(np.array([0, 1]))
    assert inputs.lengths(np.array([0, 1])).tolist() == [5, 2]
    assert ids[0, -1] == WORD["[SEP]"]
    assert torch.isfinite(backbone.feature(ids, lengths)).all()


def test_a_template_stays_whole_around_a_long_text(checkpoint):
    backbone, config = text_model(checkpoint, max_length=8)
    words = "light lights kitchen music play louder off on " * 3
    inputs = inputs_for(dataset(["on", words, ""]), backbone, config, ("turn ", " please"))
    ids, lengths = inputs.batch(np.array([0, 1, 2]))
    expected = (
        "[CLS] turn on please [SEP]",
        "[CLS] turn light lights kitchen music please [SEP]",
        "[CLS] turn please [SEP]",
    )
    assert lengths is not None
    for row, length, text in zip(ids, lengths, expected, strict=True):
        assert row[:length].tolist() == [WORDS.index(word) for word in text.split()]


def test_a_template_needs_texts(checkpoint):
    config = ModelConfig(name=str(checkpoint("vit")))
    with pytest.raises(ConfigError, match=r"^data\.template: needs texts, and the data are pictures"):
        inputs_for(dataset(pictures(), "image"), load_backbone(config, LoraConfig()), config, ("a ", ""))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_text_longer_than_the_model_reads_is_cut_to_what_it_reads(checkpoint, tmp_path, family):
    folder = shutil.copytree(checkpoint(family), tmp_path / family)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint("bert") / name, folder)
    config = ModelConfig(
        name=str(folder), max_length=100
    )  # both tiny models read 24 tokens; RoBERTa has 26 positions for them
    backbone = load_backbone(config, LoraConfig())
    inputs = inputs_for(dataset(["the light " * 50]), backbone, config)
    assert inputs.lengths(np.array([0])).tolist() == [24]
    assert torch.isfinite(backbone.feature(*inputs.batch(np.array([0])))).all()
    assert torch.isfinite(class_name_embeddings(["the light " * 50], backbone, config)).all()


def test_class_name_embeddings_are_the_features_of_the_words(checkpoint, backbone, texts):
    config = ModelConfig(name=str(checkpoint("bert")))
    names = ["turn_on_the_light", "music-off", "lights"]
    made = class_name_embeddings(names, backbone, config)
    assert made.shape == (3, backbone.feature_size)
    assert not made.requires_grad
    for row, text in enumerate((0, 1, 3)):
        assert torch.equal(made[row], backbone.feature(texts.batch(np.array([text]))[0], None)[0])
    assert torch.equal(class_name_embeddings(names[::-1], backbone, config), made.flip(0))


def test_a_relative_path_is_another_model_in_another_folder(checkpoint, tmp_path, monkeypatch):
    """A process may change its folder; a model stays at the place where it was opened."""
    for number in (0, 1):
        shutil.copytree(checkpoint("bert"), tmp_path / f"{number}" / "model")
    path = tmp_path / "1" / "model" / "tokenizer.json"
    path.write_text(
        path.read_text().replace('"music": 11', '"music": 20').replace('"music":11', '"music":20')
    )
    config, found = ModelConfig(name="./model"), []
    for number in (0, 1, 0):
        monkeypatch.chdir(tmp_path / f"{number}")
        found.append(
            int(
                inputs_for(dataset(["music"]), load_backbone(config, LoraConfig()), config).batch(
                    np.array([0])
                )[0][0, 1]
            )
        )
    assert found == [11, 20, 11]


# images


@pytest.fixture(scope="module")
def vit(checkpoint, tmp_path_factory):
    """A tiny ViT with its image processor beside it."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folder = shutil.copytree(checkpoint("vit"), tmp_path_factory.mktemp("pictures") / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def pictures():
    draw = np.random.default_rng(0)
    return [
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in ((40, 60), (33, 20), (32, 32))
    ]


@pytest.mark.parametrize(("asked", "size"), [(None, 32), (48, 48), (16, 16)])
def test_images_have_the_size_that_was_asked_for(vit, asked, size):
    config = ModelConfig(name=str(vit), image_size=asked)
    backbone = load_backbone(config, LoraConfig())
    inputs = inputs_for(dataset(pictures(), "image"), backbone, config)
    made, lengths = inputs.batch(np.array([2, 0]))
    assert made.shape == (2, 3, size, size)
    assert made.dtype == torch.float32
    assert lengths is None
    assert backbone.feature(made, None).shape == (2, 32)
    assert inputs.lengths(np.array([2, 0])).tolist() == [1, 1]


def test_an_image_is_normalised_and_does_not_depend_on_its_batch(vit):
    config = ModelConfig(name=str(vit))
    inputs = inputs_for(dataset(pictures(), "image"), load_backbone(config, LoraConfig()), config)
    together = inputs.batch(np.array([0, 1, 2]))[0]
    assert all(torch.equal(inputs.batch(np.array([row]))[0][0], together[row]) for row in range(3))
    expected = torch.from_numpy(np.array(pictures()[2])).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(together[2], expected, atol=1e-4, rtol=0)


def test_clips_processor_does_not_crop_where_a_size_is_asked_for():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    assert ImageInputs(pictures(), processor, None).batch(np.array([0, 1]))[0].shape == (2, 3, 32, 32)
    assert ImageInputs(pictures(), processor, 48).batch(np.array([0, 1]))[0].shape == (2, 3, 48, 48)


def test_an_image_smaller_than_a_patch_is_one_line(checkpoint, tmp_path):
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=64, patch_size=32)).save_pretrained(
        tmp_path
    )
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    config = ModelConfig(name=str(tmp_path), image_size=16)
    with pytest.raises(FedmsError, match="image_size"):
        backbone = load_backbone(config, LoraConfig())
        backbone.feature(*inputs_for(dataset(pictures(), "image"), backbone, config).batch(np.array([0])))


def test_an_image_size_with_part_of_a_patch_is_one_line(vit):
    config = ModelConfig(name=str(vit), image_size=20)
    message = refused(dataset(pictures(), "image"), load_backbone(config, LoraConfig()), config)
    assert message.startswith("model.image_size: ")
    assert message.endswith("must be a multiple of its patches (8), not 20")


# what does not fit


def refused(data, backbone, config) -> str:
    with pytest.raises(FedmsError) as caught:
        inputs_for(data, backbone, config)
    assert str(caught.value).isprintable()
    assert len(str(caught.value).partition(config.name)[2]) > 15, f"says nothing: {caught.value}"
    return str(caught.value)


def test_text_for_an_image_model_and_the_reverse_are_one_line(checkpoint):
    backbone, config = text_model(checkpoint)
    assert "reads text, but the data are image" in refused(dataset(pictures(), "image"), backbone, config)
    config = ModelConfig(name=str(checkpoint("vit")))
    assert "reads image, but the data are text" in refused(
        dataset(TEXTS), load_backbone(config, LoraConfig()), config
    )


def test_a_model_without_its_image_processor_is_one_line(checkpoint):
    config = ModelConfig(name=str(checkpoint("vit")))
    assert "no image processor" in refused(
        dataset(pictures(), "image"), load_backbone(config, LoraConfig()), config
    )


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_model_without_its_tokenizer_is_one_line(checkpoint, tmp_path, family):
    folder = tmp_path / family
    shutil.copytree(checkpoint(family), folder, ignore=shutil.ignore_patterns("token*"))
    config = ModelConfig(name=str(folder))
    assert "no tokenizer" in refused(dataset(TEXTS), load_backbone(config, LoraConfig()), config)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_a_damaged_tokenizer_is_one_line(checkpoint, tmp_path, content):
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "bert")
    (folder / "tokenizer.json").write_text(content)
    config = ModelConfig(name=str(folder))
    assert "no tokenizer" in refused(dataset(TEXTS), load_backbone(config, LoraConfig()), config)
