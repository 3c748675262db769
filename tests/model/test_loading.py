"""Loading: a wrong model is one line for the user, and only complete safetensors are read."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fedms.config.sections import LoraConfig, ModelConfig
from fedms.core.errors import FedmsError
from fedms.model import checkpoints as module
from fedms.model import families
from fedms.model.checkpoints import load_backbone, locate, open_checkpoint
from fedms.model.families import FAMILIES, Family, register_family


def refused(name) -> str:
    with pytest.raises(FedmsError) as caught:
        load_backbone(ModelConfig(name=str(name)), LoraConfig())
    message = str(caught.value)
    assert message.isprintable(), f"more than one line: {message!r}"
    assert message.startswith(f"model {name}: ")
    assert caught.value.exit_code == 1
    return message


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of the tiny BERT, to be damaged."""
    return shutil.copytree(checkpoint("bert"), tmp_path / "bert")


def test_a_family_that_shares_one_block_is_refused_with_the_reason(tmp_path):
    transformers.AlbertConfig().save_pretrained(tmp_path)
    message = refused(tmp_path)
    assert "'albert'" in message and "none can be active alone" in message


def test_a_quantised_model_is_refused_with_the_way_out(tmp_path):
    config = transformers.LlamaConfig()
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}  # type: ignore[attr-defined]
    config.save_pretrained(tmp_path)
    assert "quantised; name the model that it was made from" in refused(tmp_path)


def test_a_missing_folder(tmp_path):
    assert "no such folder" in refused(tmp_path / "nothing")


def test_a_folder_without_a_model(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path)


WRONG_TYPE = '{"model_type": "bert", "hidden_size": "wide"}'
DAMAGED = ["", "{", "[]", "{}", '{"model_type": 3}', WRONG_TYPE]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_model_config(folder, content):
    (folder / "config.json").write_text(content)
    message = refused(folder)
    if content == WRONG_TYPE:
        assert "'hidden_size'" in message
        assert "wide" in message


def test_pickled_weights_alone_are_not_read(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "safetensors" in refused(folder)


@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99])
def test_truncated_weights(folder, kept):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    assert "safetensors" in refused(folder)


def test_a_missing_weight_is_named(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.1.attention.self.value.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    assert "encoder.layer.1.attention.self.value.weight" in refused(folder)


def test_weights_of_another_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    refused(folder)


def test_a_checkpoint_with_a_head_and_no_pooler_loads(folder, checkpoint):
    model = transformers.BertForMaskedLM(transformers.BertConfig.from_pretrained(folder))
    model.bert.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    shutil.rmtree(folder)
    model.save_pretrained(folder)
    ids = torch.arange(4, 12)[None]
    whole = load_backbone(ModelConfig(name=str(checkpoint("bert"))), LoraConfig())
    headed = load_backbone(ModelConfig(name=str(folder)), LoraConfig())
    assert torch.equal(headed.feature(ids, None), whole.feature(ids, None))
    assert headed.parameter_count == whole.parameter_count


def test_half_precision_weights_are_run_in_full(folder):
    weights = {name: weight.half() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    backbone = load_backbone(ModelConfig(name=str(folder)), LoraConfig())
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


def test_the_home_folder_may_be_written_as_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_backbone(ModelConfig(name="~/bert"), LoraConfig()).depth == 3


def test_the_home_folder_of_nobody_is_a_missing_folder():
    assert "no such folder" in refused("~nobody-of-this-name/bert")


def test_the_embedded_encoder_is_checked_against_its_checksum(monkeypatch):
    assert locate("minilm").endswith("model")
    monkeypatch.setattr(module, "MINILM_SHA256", "0" * 64)
    message = refused("minilm")
    assert "SHA-256" in message
    assert "0" * 64 in message


def test_the_embedded_encoder_is_hashed_once_in_a_process(monkeypatch):
    locate("minilm")
    monkeypatch.setattr(module.hashlib, "file_digest", lambda *given: pytest.fail("hashed again"))
    assert open_checkpoint("minilm").source == locate("minilm")


def test_a_checkpoint_is_handed_on_with_its_backbone(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    backbone = load_backbone(ModelConfig(name="./bert"), LoraConfig())
    monkeypatch.chdir("/")
    checkpoint = backbone.checkpoint
    assert checkpoint is not None
    assert (checkpoint.name, checkpoint.source) == ("./bert", str(folder.resolve()))
    assert checkpoint.tokenizer is checkpoint.tokenizer
    with pytest.raises(FedmsError, match="no image processor"):
        checkpoint.image_processor  # noqa: B018


def test_a_registered_family_loads(folder, monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(FAMILIES))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "electra", "embedding_size": 32}))
    family = Family("text", "encoder.layer", ("query", "value"))
    register_family("electra", family)
    register_family("electra", family)
    assert load_backbone(ModelConfig(name=str(folder)), LoraConfig()).depth == 3
    with pytest.raises(ValueError, match="electra"):
        register_family("electra", Family("text", "layers", ("query",)))
