"""Text from a client's mixture: the cache changes nothing, the gate goes with the text."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedms import load
from fedms.cli.main import app
from fedms.core.errors import ConfigError, FedmsError
from fedms.data.federated import Samples
from fedms.data.passages import Passage
from fedms.experiments import experiment
from fedms.federation.token_generation import Decoding, TokenMixture, chosen, generate
from fedms.federation.token_prediction import judge_tokens
from fedms.runs.export.export import export_client
from fedms.training.passages import passage_inputs
from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import Runner
from tiny_text import llama, speeches, text_config, write_llama  # noqa: F401

PROMPTS = ("c asks :", "a asks :")


@pytest.fixture(scope="module")
def folder(llama, speeches, tmp_path_factory):  # noqa: F811
    """A finished run whose two experts differ."""
    path = tmp_path_factory.mktemp("generation") / "run"
    experiment.run(text_config(llama, speeches, "mixture.interpolation=1.0"), path)
    return path


@pytest.fixture(scope="module")
def client(folder):
    return load(folder, "ann-0")


@pytest.fixture(scope="module")
def routed(llama, speeches, tmp_path_factory):  # noqa: F811
    """A client whose experts a router weighs."""
    path = tmp_path_factory.mktemp("routed") / "run"
    experiment.run(text_config(llama, speeches, "method=pfl-moe"), path)
    return load(path, "ann-0")


class Forgetful(TokenMixture):
    """Reads the whole sequence again for each token, with nothing kept."""

    def __init__(self, *given):
        super().__init__(*given)
        self.given, self.seen = given, []

    def read(self, tokens):
        self.seen += tokens
        fresh = TokenMixture(*self.given)
        log_p = fresh.read(self.seen)
        self.local_weight = fresh.local_weight
        return log_p


def drawn(client, kind, decoding, prior=0.5, prompt=PROMPTS[0]):
    with client._shared.exclusive() as backbone:
        inputs = passage_inputs([], backbone, client.personal.config.model)
        opening = inputs.opening(prompt, True, 40)
        mixture = kind(client.personal, backbone, client.boundary, prior)
        generator = torch.Generator().manual_seed(3)
        return generate(mixture, opening, decoding, inputs.end, inputs.tokenizer.decode, generator)


@pytest.mark.parametrize(
    "decoding", [Decoding(12), Decoding(12, temperature=1.5, top_p=0.9)], ids=["greedy", "drawn"]
)
def test_the_cache_changes_nothing(client, decoding):
    kept, forgotten = (drawn(client, kind, decoding) for kind in (TokenMixture, Forgetful))
    assert kept.tokens == forgotten.tokens and len(kept.tokens) > 1
    assert kept.log_likelihood == pytest.approx(forgotten.log_likelihood, abs=1e-4)
    assert kept.local_weight == pytest.approx(forgotten.local_weight, abs=1e-5)


@pytest.mark.parametrize("prior", [0.2, 0.8])
@pytest.mark.parametrize("by", ["client", "routed"])
def test_what_is_generated_has_the_likelihood_that_the_test_measures(request, by, prior):
    client = request.getfixturevalue(by)
    said = drawn(client, TokenMixture, Decoding(20, temperature=2.0), prior)
    assert said.ended == "end", "choose another seed: the passage must be whole"
    with client._shared.exclusive() as backbone:
        inputs = passage_inputs([Passage(PROMPTS[0], said.text)], backbone, client.personal.config.model)
        runner = Runner(backbone, PrefixCache(backbone, inputs, 2**20, disk=0, folder=Path()))
        samples = Samples("new", np.arange(1), torch.zeros(1, dtype=torch.long))
        outputs = judge_tokens(client.personal, runner, samples, client.boundary)
    assert outputs.tokens == len(said.tokens) + 1
    assert said.log_likelihood == pytest.approx(outputs.log_likelihood(prior), abs=1e-4)
    assert said.local_weight == pytest.approx(1 - outputs.global_share(prior), abs=1e-5)


def test_the_prior_goes_from_one_expert_to_the_other(client):
    alone = {}
    for prior in (0.0, 1.0):
        [said] = client.generate(PROMPTS[:1], prior, max_tokens=8)
        assert said.local_weight == prior and said.global_weight == 1 - prior
        alone[prior] = said.log_probability
    assert alone[0.0] != alone[1.0]


def test_two_experts_that_are_the_same_generate_as_one_model_does(folder, llama):  # noqa: F811
    import transformers

    same = load(folder, "ann-0")
    same.personal.experts = {}  # both are the pretrained model then
    parent = transformers.AutoModelForCausalLM.from_pretrained(llama).eval()
    inputs = passage_inputs([], same.backbone, same.personal.config.model)
    for prompt in PROMPTS:
        opening = torch.tensor([inputs.opening(prompt, True, 40)])
        theirs = parent.generate(opening, max_new_tokens=10, do_sample=False)[0, opening.shape[1] :].tolist()
        mine = drawn(same, TokenMixture, Decoding(10), prompt=prompt)
        end = [inputs.end] if mine.ended == "end" else []
        assert mine.tokens + end == theirs


def test_a_text_ends_before_a_stop_string_and_within_its_length(client):
    [whole] = client.generate(PROMPTS[:1], max_tokens=9, temperature=1.0, seed=5)
    assert whole.tokens <= 9 and (whole.ended == "end") == (whole.tokens < 9)
    second = whole.text.split()[1]
    [cut] = client.generate(PROMPTS[:1], max_tokens=9, temperature=1.0, seed=5, stop=[second])
    assert cut.ended == "stop" and cut.text == whole.text[: whole.text.index(second)]
    assert client.generate(PROMPTS, temperature=1.0, seed=5) == client.generate(
        PROMPTS, temperature=1.0, seed=5
    )


def test_top_p_draws_from_the_likeliest_tokens_alone():
    log_p = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    seen = {chosen(log_p, Decoding(1, temperature=1.0, top_p=0.6), generator) for _ in range(200)}
    assert seen == {0, 1}
    assert {chosen(log_p, Decoding(1, temperature=1.0), generator) for _ in range(400)} == {0, 1, 2, 3}
    hot = [chosen(log_p, Decoding(1, temperature=0.1), generator) for _ in range(100)]
    assert hot.count(0) > 90 and chosen(log_p, Decoding(1), generator) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: must be 1 or more"),
        ({"max_tokens": 64}, "max_tokens: must be at most 63"),
        ({"temperature": -1.0}, "temperature: must be 0 or more"),
        ({"temperature": math.nan}, "temperature: must be 0 or more"),
        ({"top_p": 0.0}, "top_p: must be above 0"),
        ({"stop": [""]}, "stop: must be texts"),
        ({"prior": 1.5}, "prior: must be from 0 to 1"),
    ],
)
def test_options_out_of_range_are_one_line(client, options, message):
    with pytest.raises(ConfigError, match=message):
        client.generate(PROMPTS, **options)


def test_what_needs_classes_says_what_to_use(client):
    with pytest.raises(ConfigError, match="use generate"):
        client.predict(["a"])


def test_a_long_prompt_loses_its_first_tokens(client):
    inputs = passage_inputs([], client.backbone, client.personal.config.model)
    words = inputs.opening("a b c d e f", True, 4)
    assert inputs.tokenizer.decode(words) == "<s> d e f" and len(inputs.opening("a", True, 1)) == 1


def test_the_command_prints_texts_and_writes_tables(folder, client, tmp_path):
    def ask(*given):
        return CliRunner().invoke(app, ["predict", str(folder), "--client", client.name, *map(str, given)])

    expected = client.generate(PROMPTS, max_tokens=5)
    lines = ask(*PROMPTS, "--max-tokens", 5, "--json").stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == [each.text for each in expected]
    shown = ask(PROMPTS[0], "--max-tokens", 5).stdout
    assert f"{expected[0].tokens} tokens, ended by {expected[0].ended}" in shown and expected[0].text in shown
    table = tmp_path / "asked.csv"
    table.write_text("who,ask\nann,c asks :\nbob,a asks :\n")
    done = ask("--input", table, "--column", "ask", "--output", tmp_path / "out.csv", "--max-tokens", 5)
    assert done.exit_code == 0, done.output
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["generated"] for row in rows] == [each.text for each in expected]
    assert [row["who"] for row in rows] == ["ann", "bob"]
    wrong = ask(PROMPTS[0], "--max-tokens", 0)
    assert wrong.exit_code == 2 and "max_tokens: must be 1 or more" in wrong.output


def test_the_loss_of_answers_is_the_one_that_the_run_measured(folder, client, speeches, tmp_path):  # noqa: F811
    with speeches.open() as file:
        rows = [row for row in csv.DictReader(file) if row["speaker"] == "ann"][:6]
    prompts, answers = [row["line"] for row in rows], [row["reply"] for row in rows]
    found = client.evaluate(prompts, answers, 0.8)
    explained = client.explain(prompts, 0.8, answers)
    counted = [token for each in explained for token in each if token.counted]
    assert len(counted) == found.tokens and explained[0][0].local_weight == pytest.approx(0.8)
    assert found.nll == pytest.approx(-np.mean([token.log_probability for token in counted]), abs=1e-5)
    assert found.nll_local == pytest.approx(
        -np.mean([token.local_log_probability for token in counted]), abs=1e-5
    )
    assert found.nll_global != found.nll_local and found.perplexity == pytest.approx(math.exp(found.nll))
    said = ["evaluate", str(folder), "--client", client.name, "--input", str(speeches), "--column", "line"]
    done = CliRunner().invoke(app, [*said, "--label", "reply", "--output", str(tmp_path / "out.json")])
    assert done.exit_code == 0 and "perplexity" in done.output, done.output
    assert json.loads((tmp_path / "out.json").read_text())["tokens"] > found.tokens
    assert "needs the answers" in CliRunner().invoke(app, said).output


def test_what_a_text_client_cannot_do_is_one_line(client, tmp_path):
    with pytest.raises(FedmsError, match="cannot be exported yet"):
        export_client(client, tmp_path / "export")
    with pytest.raises(FedmsError, match="1 prompts and 2 answers"):
        client.evaluate(["a"], ["b", "c"])
