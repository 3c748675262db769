"""The formulas for operations against PyTorch's counter, which counts all products of eager attention."""

from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from fedms.model import flops
from fedms.model.backbone import Backbone
from fedms.model.expert import Expert
from fedms.model.families import FAMILIES
from fedms.model.parts import fresh_lora

BATCH, RANK = 3, 4
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "attn_implementation": "eager",
}
WITHIN = 0.05


def made(family: str, targets: tuple[str, ...] = ()):
    """A backbone and its first hidden states: 32 tokens of text, or 36 + 1 of an image."""
    torch.manual_seed(0)
    model: transformers.BertModel | transformers.ViTModel
    if family == "bert":
        model = transformers.BertModel(transformers.BertConfig(**SIZES, vocab_size=50))
        inputs = torch.randint(0, 50, (BATCH, 32))
    else:
        model = transformers.ViTModel(transformers.ViTConfig(**SIZES, image_size=48, patch_size=8))
        inputs = torch.randn(BATCH, 3, 48, 48)
    model.pooler = None
    backbone = Backbone(model, FAMILIES[family], targets)
    with torch.no_grad():
        return backbone, backbone.embed(inputs)


@pytest.fixture(params=["bert", "vit"])
def case(request):
    return made(request.param)


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 1), (1, 3), (2, None), (0, 0)])
@torch.no_grad()
def test_forward(case, start, stop):
    backbone, hidden = case
    measured = counted(lambda: backbone.run(hidden, None, start, stop))
    assert flops.forward(backbone, BATCH, hidden.shape[1], start, stop) == pytest.approx(measured, rel=WITHIN)


def passes(backbone, hidden, trained) -> tuple[int, int]:
    """Measured operations of a pass from the lowest trained block to the feature, and of the way back."""
    arrays = fresh_lora(backbone, trained, RANK, 0)
    expert = Expert(arrays, 1.0)
    expert.train(list(arrays))
    backbone.attach(expert.pairs())
    kept = []
    forward = counted(lambda: kept.append(backbone.pool(backbone.run(hidden, None, min(trained)), None)))
    return forward, counted(lambda: kept[0].sum().backward())


@pytest.mark.parametrize("trained", [[0], [1], [2], [0, 1, 2], [1, 2], [0, 2]])
def test_forward_with_pairs_and_backward(case, trained):
    backbone, hidden = case
    tokens, lowest = hidden.shape[1], min(trained)
    forward, backward = passes(backbone, hidden, trained)
    expected = flops.forward(backbone, BATCH, tokens, lowest) + flops.pairs(
        backbone, BATCH, tokens, RANK, trained
    )
    assert expected == pytest.approx(forward, rel=WITHIN)
    assert flops.backward(backbone, BATCH, tokens, RANK, trained) == pytest.approx(backward, rel=WITHIN)


@pytest.mark.parametrize("trained", [[2], [0, 2]])
@pytest.mark.parametrize(
    "targets", [("key",), ("query", "key", "value"), ("attention.output.dense",), ("intermediate.dense",)]
)
def test_with_other_targets_the_way_back_is_not_counted_too_low(targets, trained):
    backbone, hidden = made("bert", targets)
    _, backward = passes(backbone, hidden, trained)
    assert backward <= flops.backward(backbone, BATCH, hidden.shape[1], RANK, trained)


def test_pairs_alone(case):
    backbone, hidden = case
    tokens = hidden.shape[1]
    backbone.attach({})
    with torch.no_grad():
        bare = counted(lambda: backbone.run(hidden, None))
        backbone.attach(Expert(fresh_lora(backbone, [0, 2], RANK, 0), 1.0).pairs())
        more = counted(lambda: backbone.run(hidden, None)) - bare
    assert flops.pairs(backbone, BATCH, tokens, RANK, [0, 2]) == more


def test_what_trains_below_all_blocks_is_reached_through_all_of_them(case):
    backbone, hidden = case
    backbone.attach({})
    hidden = hidden.detach().requires_grad_()
    out = backbone.run(hidden, None).sum()
    assert flops.backward(backbone, BATCH, hidden.shape[1], 0, [flops.BELOW]) == pytest.approx(
        counted(lambda: out.backward()), rel=WITHIN
    )


def test_nothing_trained_costs_no_backward_pass(case):
    backbone, _ = case
    assert flops.backward(backbone, BATCH, 32, RANK, []) == 0


def test_what_exact_aggregation_keeps_is_counted():
    backbone, hidden = made("bert")
    arrays = fresh_lora(backbone, [2], RANK, 0)
    count, tokens = hidden.shape[:2]

    def forward(expert: Expert) -> int:
        backbone.attach(expert.pairs())
        return counted(lambda: backbone.run(hidden, None, 2))

    plain = forward(Expert(arrays, 1.0))
    kept = {f"block.2.{target}.residual": torch.zeros(backbone.shape(target)) for target in backbone.targets}
    expected = flops.residuals(backbone, count, tokens, [(2, target) for target in backbone.targets])
    assert forward(Expert(arrays | kept, 1.0)) - plain == expected > 0
