"""One client of a finished run of `task: text`: it generates, and says how likely texts are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedms.core import seeds
from fedms.core.errors import ConfigError, FedmsError
from fedms.data.federated import Samples
from fedms.data.passages import Passage
from fedms.federation.prediction import ClientOutputs
from fedms.federation.token_generation import Decoding, Drawn, TokenMixture, generate
from fedms.federation.token_prediction import TokenOutputs, judge_tokens
from fedms.model.next_token import mixed, perplexity
from fedms.runs.client import CHUNK, MEMORY, Client, Prediction
from fedms.runs.inputs import Input, each_input
from fedms.training.passages import PassageInputs, passage_inputs
from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import Runner

USUAL_TOKENS = 128
"""The most tokens of a text by default"""
NO_CLASSES = "this client's model predicts tokens, not classes (task: text): use generate"


@dataclass(frozen=True)
class Generation:
    """A client's text for one prompt."""

    prompt: str
    text: str
    """What was generated, without the prompt."""
    tokens: int
    """How many were drawn, the end token apart."""
    ended: str
    """Why it ends: `end` (the model's own end token), `stop` (a stop string) or `length` (max_tokens)."""
    log_probability: float
    """Sum of log p over what was drawn, under the mixture at temperature 1, in nats."""
    local_weight: float | None
    """Mean g_L over these tokens; None if the method mixes no experts."""
    global_weight: float | None
    """1 - local_weight"""


@dataclass(frozen=True)
class TextEvaluation:
    """How well a client predicts the tokens of some texts, or of the answers to some prompts."""

    tokens: int
    """How many count, end tokens included."""
    nll: float
    """Mean of -log p of a token, in nats. Lower is better."""
    perplexity: float
    """exp(nll)"""
    token_accuracy: float
    """Share of the tokens that the model finds likeliest."""
    nll_global: float
    """nll of the global expert alone; of a method without one, `nll`."""
    nll_local: float
    """nll of the local expert alone; of a method without one, `nll`."""
    local_weight: float | None
    """Mean g_L of a token; None if the method mixes no experts."""


@dataclass(frozen=True)
class TokenExplanation:
    """What a client's experts say of one token of a text."""

    token: str
    counted: bool
    """Whether it is part of the answer; the gate reads the prompt, too."""
    log_probability: float
    """Under the mixture."""
    global_log_probability: float
    local_log_probability: float
    local_weight: float | None
    """g_L before this token; None if the method mixes no experts."""


class TextClient(Client):
    """A client whose model predicts the next token. What needs classes raises ConfigError."""

    def generate(  # type: ignore[override] # the options by name
        self,
        prompts: Iterable[str],
        prior: float | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[Generation]:
        """A text for each prompt, from the mixture of both experts.

        A prompt is an answer's prompt as `data.prompt` made it, or, where the run learned whole texts, the
        beginning of a text. One that leaves no room for `max_tokens` loses its first tokens.

        Args:
            prompts: in a list or another iterable.
            prior: how often this client meets its own kind of data; default: as the run had it.
            max_tokens: the most tokens of a text; default: 128, but no more than half
                of what the model reads.
            temperature: 0 takes the likeliest token; at 1 tokens are drawn by the mixture's probabilities.
            top_p: draw from the likeliest tokens alone that hold this much probability.
            stop: a text ends before the first of these strings.
            seed: of the draws. The same prompts with the same seed give the same texts.

        Raises:
            ConfigError: a value is out of its range, or more tokens than the model reads.
            FedmsError: a prompt is no text.
            TypeError: one prompt in place of several.
        """
        usual = min(USUAL_TOKENS, self._most_tokens // 2)
        decoding = Decoding(usual if max_tokens is None else max_tokens, temperature, top_p, stop, seed)
        prior, found = self._checked_prior(prior), []
        for number, given in enumerate(each_input(prompts), 1):
            prompt = str(self._checked_input(given, number))
            drawn = self._generated(prompt, prior, decoding, number)
            own = drawn.local_weight
            everyone = None if own is None else 1 - own
            counted = len(drawn.tokens)
            found.append(
                Generation(prompt, drawn.text, counted, drawn.ended, drawn.log_likelihood, own, everyone)
            )
        return found

    @property
    def _most_tokens(self) -> int:
        """How many tokens the model can read."""
        return self.backbone.positions or self.personal.config.model.max_length

    def _generated(self, prompt: str, prior: float, decoding: Decoding, number: int) -> Drawn:
        config = self.personal.config
        with self._shared.exclusive() as backbone:
            inputs = passage_inputs([], backbone, config.model)
            room = self._most_tokens - decoding.max_tokens
            if room < 1:
                most = self._most_tokens - 1
                raise ConfigError(
                    f"max_tokens: must be at most {most} for this model, not {decoding.max_tokens}"
                )
            opening = inputs.opening(prompt, config.data.prompt is not None, room)
            mixture = TokenMixture(self.personal, backbone, self.boundary, prior)
            generator = seeds.torch_generator(decoding.seed, "generate", number)
            return generate(mixture, opening, decoding, inputs.end, _decoder(inputs), generator)

    def fits(self) -> bool:
        """Whether the arrays fit each other and the backbone: one token gets a distribution."""
        if not (0 <= self.prior <= 1 and 0 <= self.boundary <= self.backbone.depth):
            return False
        try:
            drawn = self._generated("a", self.prior, Decoding(max_tokens=1), 1)
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError):
            return False  # what torch and dicts raise for arrays of other names or shapes
        return bool(np.isfinite(drawn.log_likelihood))

    def predict(self, inputs: Iterable[Input], prior: float | None = None) -> list[Prediction]:
        raise ConfigError(NO_CLASSES)

    def predict_proba(self, inputs: Iterable[Input], prior: float | None = None) -> np.ndarray:
        raise ConfigError(NO_CLASSES)

    def evaluate(  # type: ignore[override] # losses, not classes
        self,
        inputs: Iterable[Input],
        labels: Iterable[object] | None = None,
        prior: float | None = None,
    ) -> TextEvaluation:
        """How likely texts are, or with `labels` these answers to the prompts in `inputs`.

        Raises:
            ConfigError: answers are missing where the run learned answers, or given where it learned texts.
            FedmsError: there are not as many answers as prompts, or none.
        """
        prior, found = self._checked_prior(prior), []
        passages = self._passages(inputs, labels)
        for start in range(0, len(passages), CHUNK):
            outputs, _ = self._judged(passages[start : start + CHUNK])
            counted, said = outputs.counted, outputs.scored
            alone = (float(each[counted].double().sum()) for each in (said.everyone, said.own))
            weight = float(outputs.local_weight(prior)[counted].double().sum())
            found.append(
                (outputs.tokens, outputs.log_likelihood(prior), outputs.right(prior), *alone, weight)
            )
        tokens, likelihood, right, everyone, own, weight = map(sum, zip(*found, strict=True))
        nll = -likelihood / tokens
        return TextEvaluation(
            tokens,
            nll,
            perplexity(nll),
            right / tokens,
            -everyone / tokens,
            -own / tokens,
            weight / tokens if self._mixes else None,
        )

    def explain(  # type: ignore[override] # tokens, not classes
        self,
        inputs: Iterable[Input],
        prior: float | None = None,
        answers: Iterable[object] | None = None,
    ) -> list[list[TokenExplanation]]:
        """For each text, or each prompt with its answer: what both experts say of its tokens, one by one.

        Errors are those of `evaluate`.
        """
        prior, found = self._checked_prior(prior), []
        for passage in self._passages(inputs, answers):
            outputs, inputs_of = self._judged([passage])
            [ids] = inputs_of.whole(np.arange(1))
            said, weight = outputs.scored, outputs.local_weight(prior)
            mixture = mixed(said.everyone, said.own, weight)
            found.append(
                [
                    TokenExplanation(
                        inputs_of.tokenizer.decode([int(ids[at + 1])]),
                        bool(outputs.counted[at]),
                        float(mixture[at]),
                        float(said.everyone[at]),
                        float(said.own[at]),
                        float(weight[at]) if self._mixes else None,
                    )
                    for at in range(len(mixture))
                ]
            )
        return found

    @property
    def _mixes(self) -> bool:
        return self.personal.method.predicts == "mixture"

    def _passages(self, inputs: Iterable[Input], answers: Iterable[object] | None) -> list[Passage]:
        asked = self.personal.config.data.prompt is not None
        if asked != (answers is not None):
            needs = "needs the answers to its prompts" if asked else "takes whole texts, and no answers"
            raise ConfigError(f"this client's model {needs}, as the run learned them")
        texts = [str(self._checked_input(each, number)) for number, each in enumerate(each_input(inputs), 1)]
        if answers is None:
            found = [Passage(None, text) for text in texts]
        else:
            said = [str(each) for each in answers]
            if len(said) != len(texts):
                raise FedmsError(f"there are {len(texts)} prompts and {len(said)} answers")
            found = [Passage(*both) for both in zip(texts, said, strict=True)]
        if not found:
            raise FedmsError("there are no texts to judge")
        return found

    def _judged(self, passages: list[Passage]) -> tuple[TokenOutputs, PassageInputs]:
        with self._shared.exclusive() as backbone:
            inputs = passage_inputs(passages, backbone, self.personal.config.model)
            # with a budget of 0 on disk the cache writes nothing into its folder
            cache = PrefixCache(backbone, inputs, MEMORY, disk=0, folder=Path())
            none = torch.zeros(len(passages), dtype=torch.long)
            samples = Samples("new", np.arange(len(passages)), none)
            return judge_tokens(self.personal, Runner(backbone, cache), samples, self.boundary), inputs

    def judge(self, inputs: Sequence[Input], before: int = 0) -> ClientOutputs:
        raise FedmsError(NO_CLASSES)


def _decoder(inputs: PassageInputs) -> Callable[[list[int]], str]:
    return lambda tokens: str(inputs.tokenizer.decode(tokens, skip_special_tokens=True))
