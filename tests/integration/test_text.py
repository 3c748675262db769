"""`task: text`: a language model through both stages, to losses and a frontier."""

import math
from typing import cast

import numpy as np
import pytest
import torch

from fedms.core.errors import ConfigError
from fedms.experiments import experiment
from fedms.federation.methods import METHODS, find
from fedms.federation.world import open_world
from fedms.training.passages import PassageInputs
from tiny_text import llama, speeches, text_config, write_llama  # noqa: F401

SECONDS = ("seconds", "evaluation_seconds", "peak_memory_bytes")


def result(config, folder):
    found = experiment.run(config, folder)
    return {key: value for key, value in found.items() if key not in SECONDS}


@pytest.fixture(scope="module")
def finished(llama, speeches, tmp_path_factory):  # noqa: F811
    return result(text_config(llama, speeches), tmp_path_factory.mktemp("text") / "run")


def test_the_mixture_learns_and_its_frontier_goes_from_one_expert_to_the_other(finished):
    assert finished["task"] == "text" and len(finished["evidence_scales"]) == 9
    assert finished["nll_global_shared"] < finished["nll_base"]
    frontier = finished["frontier"]
    assert frontier[0]["nll_local"] == pytest.approx(finished["nll_global_shared"])
    assert frontier[5]["nll_local"] == finished["nll_local"]  # prior 1/2
    assert frontier[-1]["nll_local"] < frontier[0]["nll_local"]  # the local expert is better at home
    assert frontier[-1]["nll_global"] > frontier[5]["nll_global"]  # and worse elsewhere
    assert finished["perplexity_local"] == pytest.approx(math.exp(finished["nll_local"]))
    assert 0 < finished["accuracy_local"] <= 1 and finished["uplink_bytes"] > 0


def test_the_same_config_gives_the_same_result_whatever_the_workers(finished, llama, speeches, tmp_path):  # noqa: F811
    again = result(text_config(llama, speeches, "engine.workers=2"), tmp_path / "run")
    assert again == finished


def test_a_run_that_is_interrupted_comes_to_the_same_result(finished, llama, speeches, tmp_path):  # noqa: F811
    class Interrupts(experiment.Silent):
        def round_done(self, record):
            if record["stage"] == "local":
                raise KeyboardInterrupt

    config = text_config(llama, speeches)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path / "run", Interrupts())
    found = experiment.run(config, tmp_path / "run", resume=True)
    assert {key: value for key, value in found.items() if key not in SECONDS} == finished


@pytest.mark.parametrize("tied", [True, False])
def test_the_untrained_model_says_what_the_parent_says(speeches, tmp_path, tied):  # noqa: F811
    parent = write_llama(tmp_path / "model", tied)
    world = open_world(text_config(tmp_path / "model", speeches))
    losses = []
    for client in world.clients:
        samples, said = world.samples(client, "test"), []
        inputs = cast(PassageInputs, world.inputs)
        ids, answers = inputs.whole(samples.rows), inputs.answers(samples.rows)
        for each, count in zip(ids, answers, strict=True):
            tokens = torch.from_numpy(each.astype(np.int64))[None]
            logs = parent(tokens).logits[0, :-1].log_softmax(1)
            said += (-logs.gather(1, tokens[0, 1:, None])[-count:, 0]).tolist()
            words = inputs.tokenizer.decode(tokens[0].tolist())
            assert words.startswith("<s>") and words.endswith("</s>")
            assert count == len(words.split(":")[1].split())  # the reply and its end
        losses.append(np.mean(said))
    assert experiment.run(world.config, tmp_path / "run")["nll_base"] == pytest.approx(
        np.mean(losses), abs=1e-5
    )


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.no_text])
def test_every_method_that_makes_sense_runs(name, llama, speeches, tmp_path):  # noqa: F811
    found = result(text_config(llama, speeches, f"method={name}"), tmp_path / "run")
    assert math.isfinite(found["nll_local"]) and math.isfinite(found["nll_global"])
    mixes = name in ("fedms", "mixture-constant", "pfl-moe")
    assert bool(found["frontier"]) == mixes


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.no_text])
def test_every_other_method_says_why_not(name, llama, speeches):  # noqa: F811
    with pytest.raises(ConfigError, match=rf"method: {name} does not run with task: text: it \w+"):
        find(name).configure(text_config(llama, speeches))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["partition.rule=dirichlet", "partition.alpha=1.0"], "partition.rule: does not go with task: text"),
        (["mixture.on=logits"], "mixture.on: does not go with task: text"),
        (["data.answer=null"], "data.prompt: is needed with"),
        (["data.prompt=no columns"], "data.prompt"),
        (["task=classification"], "data.prompt: needs task: text"),
    ],
)
def test_what_does_not_fit_is_one_line(llama, speeches, keys, message):  # noqa: F811
    with pytest.raises(ConfigError, match=message) as caught:
        text_config(llama, speeches, *keys)
    assert "\n" not in str(caught.value)
