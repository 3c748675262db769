"""The frozen last layer of a language model: from a hidden state to the next token."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from fedms.core.errors import FedmsError
from fedms.model.backbone import Backbone
from fedms.model.checkpoints import Checkpoint, first_line

OTHER_STEPS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Keys of config.json by which a family does more than multiply by a matrix."""


def give_words(backbone: Backbone) -> None:
    """Load the matrix [V, d] of a backbone's words. Errors as `load_words`."""
    backbone.words = load_words(cast(Checkpoint, backbone.checkpoint), backbone.model)


def load_words(checkpoint: Checkpoint, model: Any) -> Tensor:
    """The matrix [V, d] of a model that was loaded without it, in float32.

    Raises:
        FedmsError: the model predicts no next token, or by more than a matrix.
    """
    import transformers

    name, declared = checkpoint.name, checkpoint.declared
    if not checkpoint.family.causal:
        raise FedmsError(f"model {name}: predicts no next token, which task: text needs: name a causal model")
    for key in OTHER_STEPS:
        if getattr(declared, key, None) not in (None, 1, 1.0):
            raise FedmsError(f"model {name}: its config.json says {key}, which task: text does not know")
    if getattr(declared, "tie_word_embeddings", False):
        tied: Tensor = model.get_input_embeddings().weight
        return tied.detach().float()
    try:
        whole, info = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint.source,
            config=declared,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except Exception as error:  # transformers and safetensors raise many types for a damaged folder
        raise FedmsError(f"model {name}: no usable safetensors weights: {first_line(error)}") from None
    layer = whole.get_output_embeddings()
    if info["missing_keys"] or layer is None or getattr(layer, "bias", None) is not None:
        raise FedmsError(f"model {name}: has no plain matrix for the next token, which task: text needs")
    found: Tensor = layer.weight
    return found.detach()
