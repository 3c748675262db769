"""How each method predicts, held against its definition on the clients of finished runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import fedms
from fedms.federation.assembly import REFERENCES
from fedms.federation.methods import METHODS
from fedms.federation.prediction import BlendPredictor, MixtureOutputs
from fedms.federation.world import open_world
from fedms.model.arrays import strip
from fedms.model.expert import Expert
from fedms.model.lora import LoraLinear, Pair
from fedms.runs.folder import RunFolder, read_arrays
from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import Runner
from tiny_run import finished  # noqa: F401 (a fixture)

TEXTS = ["turn on the light", "play music please", "off", "louder please the kitchen lights"]
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-4}


def opened(run):
    return fedms.load(run, "client-0")


def result(run):
    return json.loads((run / "result.json").read_text())


def frozen_features(world, samples):
    """Of the backbone without any pair, normalised."""
    runner = Runner(world.backbone, PrefixCache(world.backbone, world.inputs, 0, 0, Path(), enabled=False))
    return runner.outputs(None, samples, 0).features


# FedDPA


def test_a_blend_weighs_both_pairs_in_every_layer(generator):
    linear = LoraLinear(torch.nn.Linear(8, 8).requires_grad_(False))
    x, own, other, weight = (
        torch.randn(shape, generator=generator) for shape in ((3, 5, 8), (8, 8), (8, 8), (3, 1, 1))
    )
    linear.pair = Pair(own, torch.eye(8), 0.5, beside=(other, torch.eye(8)), weight=weight.sigmoid())
    wanted = linear.base(x) + 0.5 * (weight.sigmoid() * (x @ own.T) + (1 - weight.sigmoid()) * (x @ other.T))
    torch.testing.assert_close(linear(x), wanted, **CLOSE)


@pytest.mark.parametrize(("weight", "expert"), [(1.0, "local"), (0.0, "global")])
def test_at_its_ends_feddpa_is_one_of_its_experts(finished, monkeypatch, weight, expert):  # noqa: F811
    client = opened(finished(method="feddpa"))
    monkeypatch.setattr(
        BlendPredictor,
        "likeness",
        lambda self, model, runner, samples, boundary: torch.full((len(samples),), weight),
    )
    blended = client.judge(TEXTS)
    client.personal.method = METHODS["mixture-constant"]
    apart = client.judge(TEXTS)
    torch.testing.assert_close(blended.logits, getattr(apart, f"{expert}_logits"), **CLOSE)
    assert not torch.allclose(apart.global_logits, apart.local_logits, atol=1e-3), (
        "the experts do not differ, so nothing was held"
    )


def test_feddpa_weighs_by_likeness_to_some_of_the_clients_own_samples(finished):  # noqa: F811
    run = finished(method="feddpa")
    client, world = opened(run), open_world(RunFolder(run).config())
    references = client.personal.arrays["own.references"]
    own = frozen_features(world, world.samples("client-0", "train"))
    assert (
        len(references) == REFERENCES
        and ((references[:, None] - own[None]).norm(dim=2).min(1).values < 1e-3).all()
    )
    samples = world.everyone["test"]
    judged = client.judge([world.dataset.inputs[row] for row in samples.rows])
    cosine = F.cosine_similarity(frozen_features(world, samples)[:, None], references[None], dim=2)
    torch.testing.assert_close(judged.local_weight(0.3), cosine.mean(1).clamp(0, 1), **CLOSE)


def test_feddpa_trusts_the_local_expert_more_on_samples_like_the_clients_own(finished):  # noqa: F811
    run = finished(method="feddpa")
    client, world = opened(run), open_world(RunFolder(run).config())
    music = world.dataset.class_names.index("music")
    samples = world.everyone["test"]
    x, own = frozen_features(world, samples), samples.labels == music
    client.personal.arrays["own.references"] = x[own]  # a client of music alone
    weight = client.judge([world.dataset.inputs[row] for row in samples.rows]).local_weight(0.5)
    assert weight[own].mean() > weight[~own].mean()
    client.personal.arrays["own.references"] = -x[own]
    assert client.judge(TEXTS).local_weight(0.5).eq(0).all(), "what is unlike has no negative weight"


# mixture-count, PFL-MoE


def test_the_count_gate_is_the_global_experts_belief_in_classes_the_client_has_seen(finished):  # noqa: F811
    run = finished(method="mixture-count")
    client, world = opened(run), open_world(RunFolder(run).config())
    counts = torch.bincount(world.samples("client-0", "train").labels, minlength=4)
    judged = client.judge(TEXTS)
    wanted = (judged.global_logits.softmax(1) * counts / (counts + 2)).sum(1)
    torch.testing.assert_close(judged.local_weight(0.5), wanted, **CLOSE)
    assert wanted.std() > 0
    for prior, logits in ((0.0, judged.global_logits), (1.0, judged.local_logits)):
        torch.testing.assert_close(judged.log_probabilities(prior), logits.log_softmax(1), **CLOSE)


def test_the_count_gate_trains_nothing(finished):  # noqa: F811
    runs = [finished(method=name) for name in ("mixture-count", "mixture-constant")]
    counted, constant = (opened(run).personal.arrays for run in runs)
    assert counted.keys() - constant.keys() == {"own.counts"} and not [
        name for name in counted if name.startswith("gate.")
    ]
    assert all(torch.equal(counted[name], constant[name]) for name in constant)
    assert result(runs[0])["trainable_parameters"] == result(runs[1])["trainable_parameters"]


def test_the_gate_of_pfl_moe_learns_the_likelihood_of_the_clients_labels(finished):  # noqa: F811
    run = finished(method="pfl-moe", gate__learning_rate=0.02, training__epochs=5)
    world = open_world(RunFolder(run).config())
    gained = 0.0
    for name in world.clients:
        client, samples = fedms.load(run, name), world.samples(name, "train")
        judged = client.judge([world.dataset.inputs[row] for row in samples.rows])
        likelihood = -F.nll_loss(judged.log_probabilities(0.5), samples.labels)
        client.personal.network_kept = False  # the weight is then the prior
        alone = client.judge([world.dataset.inputs[row] for row in samples.rows])
        assert isinstance(alone, MixtureOutputs) and alone.evidence is not None
        assert alone.evidence.eq(0).all()
        gained += float(likelihood + F.nll_loss(alone.log_probabilities(0.5), samples.labels))
    assert gained > 0


# fedavg-prior, FedNCM


def test_the_label_prior_is_put_on_fedavgs_logits_and_nothing_more_is_trained_or_sent(finished):  # noqa: F811
    runs = [finished(method=name) for name in ("fedavg-prior", "fedavg")]
    shifted, plain = (opened(run) for run in runs)
    assert shifted.personal.arrays.keys() - {"own.counts"} == plain.personal.arrays.keys()
    assert all(
        torch.equal(shifted.personal.arrays[name], array) for name, array in plain.personal.arrays.items()
    )
    for key in ("uplink_bytes", "train_flops", "trainable_parameters"):
        assert result(runs[0])[key] == result(runs[1])[key]
    world = open_world(RunFolder(runs[0]).config())
    counts = torch.bincount(world.samples("client-0", "train").labels, minlength=4)
    every = torch.stack(
        [torch.bincount(world.samples(name, "train").labels, minlength=4) for name in world.clients]
    ).sum(0)
    everyone = every / every.sum()
    judged, logits = shifted.judge(TEXTS), plain.judge(TEXTS).logits
    assert torch.equal(judged.log_probabilities(0.0), plain.judge(TEXTS).log_probabilities(0.0))
    for prior in (0.3, 0.9):
        shift = (prior * counts / counts.sum() + (1 - prior) * everyone).log() - everyone.log()
        torch.testing.assert_close(judged.log_probabilities(prior), (logits + shift).log_softmax(1), **CLOSE)
        assert shift.abs().max() > 0.1


def test_fedncm_is_the_nearest_mean_of_all_clients_data_pooled(finished):  # noqa: F811
    run = finished(method="fedncm")
    client, world = opened(run), open_world(RunFolder(run).config())
    parts = [world.samples(name, "train") for name in world.clients]
    x, labels = (
        torch.cat([frozen_features(world, part) for part in parts]),
        torch.cat([part.labels for part in parts]),
    )
    means = torch.stack([x[labels == label].mean(0) for label in range(4)])
    samples = world.everyone["test"]
    cosine = F.cosine_similarity(frozen_features(world, samples)[:, None], means[None], dim=2)
    found = client.judge([world.dataset.inputs[row] for row in samples.rows]).logits
    torch.testing.assert_close(found, 20 * cosine, atol=1e-3, rtol=1e-4)
    assert result(run)["rounds"] == 0 and {line["stage"] for line in RunFolder(run).metrics()} == {
        "statistics",
        "end",
    }


def test_the_rounds_of_a_linear_probe_run_no_block(finished):  # noqa: F811
    lines = RunFolder(finished(method="linear-probe")).metrics()
    assert [line["train_flops"] > 0 for line in lines if line["stage"] == "statistics"] == [True, False], (
        "the first fills the cache"
    )
    assert [line["train_flops"] for line in lines if line["stage"] == "global"] == [0]


# PromptFL


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_prompts_lengthen_the_sequence_and_stay_out_of_the_feature(finished, monkeypatch, family):  # noqa: F811
    client = opened(finished(family=family, method="promptfl"))
    samples = (
        TEXTS
        if family == "bert"
        else [Image.new("RGB", (40, 40), shade) for shade in ("white", "red", "blue", "black")]
    )
    backbone, run, pool = client.backbone, client.backbone.run, client.backbone.pool
    seen: list[tuple[int, int]] = []

    def watched_run(hidden, lengths, start=0, stop=None):
        seen.append((hidden.shape[1], -1))
        assert not isinstance(lengths, torch.Tensor) or int(lengths.max()) == hidden.shape[1]
        return run(hidden, lengths, start, stop)

    def watched_pool(hidden, lengths):
        seen[-1] = (seen[-1][0], hidden.shape[1])
        return pool(hidden, lengths)

    monkeypatch.setattr(backbone, "run", watched_run)
    monkeypatch.setattr(backbone, "pool", watched_pool)
    together = client.judge(samples).logits
    assert [run_over - pooled for run_over, pooled in seen if pooled >= 0] == [8]
    alone = torch.cat([client.judge([sample]).logits for sample in samples])
    torch.testing.assert_close(together, alone, **CLOSE)
    client.personal.experts["global"] = Expert(
        {
            name: array
            for name, array in client.personal.global_expert.arrays.items()
            if name != "prompt.tokens"
        },
        1.0,
    )
    assert not torch.allclose(client.judge(samples).logits, together, atol=1e-3), "the prompts change nothing"


# what a result counts


@pytest.mark.parametrize(
    ("method", "numbers"),
    [
        ("ffa-lora", 3 * 2 * 32 * 4 + 4 * 33),  # B of two layers in three blocks, and a head of four classes
        ("fedalt", 3 * 2 * (2 * 32 * 4 + 33) + 4 * 33),  # both matrices and a mixer
        ("fedclip", 2 * 32 * 33),
        ("promptfl", 8 * 32 + 4 * 33),
        ("linear-probe", 4 * 33),
        ("fedncm", 0),
        ("mixture-count", 2 * (2 * 2 * 2 * 32 * 4 + 4 * 33)),  # two experts of two active blocks
    ],
)
def test_the_trainable_parameters_are_those_counted_by_hand(finished, method, numbers):  # noqa: F811
    assert result(finished(method=method))["trainable_parameters"] == numbers


def test_a_client_keeps_what_was_sent_once_of_a_low_rank(finished):  # noqa: F811
    """A and B that the server holds at full rank reach a client at its own."""
    tiers = ({"share": 0.5, "rank": 2}, {"share": 0.5, "rank": 4})
    run = finished(method="flexlora", lora__tiers=tiers, federation__aggregation="svd")
    found = {
        strip(read_arrays(run / "clients" / name / "model.safetensors")[0], "global/")[
            "block.2.query.lora_A"
        ].shape[0]
        for name in ("client-0", "client-1", "client-2")
    }
    assert found == {2, 4}
