"""Text from a client's model: token by token from the mixture of both experts, whose gate goes with the text.

Both experts read one sequence. What lies below the lowest block with a trained pair is the same for both, and
runs once. The gate is that of `model/next_token.py`: what each expert has said of the tokens so far, of the
prompt and of those that were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core.errors import ConfigError
from fedms.federation.personal_model import PersonalModel
from fedms.federation.prediction import scale_at
from fedms.model.backbone import Backbone
from fedms.model.expert import Expert
from fedms.model.next_token import log_probability, mixed, token_weights
from fedms.model.token_router import WEIGHT, routed

Ended = Literal["end", "stop", "length"]
"""Why a text ends: by the model's own end token, at a stop string, or since it may not be longer."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn.

    Raises:
        ConfigError: a value is out of its range.
    """

    max_tokens: int
    """The most tokens of a text."""
    temperature: float = 0.0
    """The mixture's probabilities are raised to 1 / temperature; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that hold this much probability are drawn from (nucleus sampling, arXiv
    1904.09751)."""
    stop: Sequence[str] = ()
    """A text ends before the first of these."""
    seed: int = 0
    """Of all draws; each text has draws of its own."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens: must be 1 or more, not {self.max_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature: must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: must be above 0 and at most 1, not {self.top_p}")
        if isinstance(self.stop, str) or not all(isinstance(each, str) and each for each in self.stop):
            raise ConfigError("stop: must be texts that are not empty")


@dataclass(frozen=True)
class Drawn:
    """The tokens that were drawn for one prompt."""

    tokens: list[int]
    """Without the end token"""
    text: str
    """Without the stop string and what follows it"""
    ended: Ended
    log_likelihood: float
    """Sum of log p of the tokens under the mixture, at temperature 1, that of the end token included"""
    local_weight: float | None
    """Mean g_L over these tokens; None where nothing is mixed"""


class TokenMixture:
    """A client's distribution of the next token of one sequence, which it is told piece by piece.

    Attributes:
        local_weight: g_L of the next token; None where one expert predicts alone.
    """

    def __init__(self, model: PersonalModel, backbone: Backbone, boundary: int, prior: float) -> None:
        from transformers import DynamicCache

        self._backbone, self._prior = backbone, prior
        experts = self._experts(model)
        self._pairs = [each.to(backbone.device).pairs() if each else {} for each in experts]
        below = {each.digest if (each := expert.below(boundary)) else "" for expert in experts if expert}
        self._start = boundary if len(below) < 2 else 0
        declared = backbone.model.config
        self._caches = [DynamicCache(config=declared) for _ in experts]
        self._scale = scale_at(model.evidence_scales, prior)
        self._by_tokens = len(experts) > 1 and model.method.gate == "learned"
        self._router = model.arrays if WEIGHT in model.arrays else None
        self._log_ratio = torch.zeros(())
        self._last: list[Tensor] = []
        """log p of the next token under each expert, [V]"""
        self.local_weight: float | None = None

    @staticmethod
    def _experts(model: PersonalModel) -> list[Expert | None]:
        """Those that predict: the global one, then the local one."""
        if model.method.predicts == "global":
            return [model.global_expert]
        if model.method.predicts == "local":
            return [model.local_expert]
        return [model.global_expert, model.local_expert]

    @torch.no_grad()
    def read(self, tokens: Sequence[int]) -> Tensor:
        """Go on by these tokens; log p of each word as the next one, [V], on the CPU."""
        words, device = self._backbone.vocabulary, self._backbone.device
        given = torch.tensor(tokens, device=device)
        states = self._backbone.read_on(given, self._start, self._caches, self._pairs)
        said = []
        for at, each in enumerate(states):
            inner = log_probability(each[:-1], words, given[1:]).sum().cpu()
            said.append(inner + (self._last[at][tokens[0]] if self._last else 0))
        self._last = [
            F.log_softmax(F.linear(each[-1:], words.to(each.dtype)).float(), dim=1)[0].cpu()
            for each in states
        ]
        if len(states) == 1:
            return self._last[0]
        self._log_ratio = self._log_ratio + (said[1] - said[0])
        ratio = self._log_ratio[None] if self._by_tokens else None
        if self._router is not None:
            ratio = routed(self._router, states[0][-1:].cpu())
        weight = token_weights(ratio, self._log_ratio[None], self._scale, self._prior)
        self.local_weight = float(weight)
        return mixed(self._last[0], self._last[1], weight)


def generate(
    mixture: TokenMixture,
    opening: Sequence[int],
    decoding: Decoding,
    end: int,
    decode: Callable[[list[int]], str],
    generator: torch.Generator,
) -> Drawn:
    """Draw tokens after an opening until the text ends.

    Args:
        opening: tokens of the prompt, at least one.
        end: the end token.
        decode: from drawn tokens to their text.
        generator: of the draws, on the CPU.
    """
    tokens: list[int] = []
    weights: list[float] = []
    text, ended, likelihood = "", "length", 0.0
    log_p = mixture.read(opening)
    while True:
        token = chosen(log_p, decoding, generator)
        likelihood += float(log_p[token])
        if mixture.local_weight is not None:
            weights.append(mixture.local_weight)
        if token == end:
            ended = "end"
            break
        tokens.append(token)
        text = decode(tokens)
        if found := [place for each in decoding.stop if (place := text.find(each)) >= 0]:
            text, ended = text[: min(found)], "stop"
            break
        if len(tokens) == decoding.max_tokens:
            break
        log_p = mixture.read([token])
    weight = sum(weights) / len(weights) if weights else None
    return Drawn(tokens, text, ended, likelihood, weight)  # type: ignore[arg-type]


def chosen(log_p: Tensor, decoding: Decoding, generator: torch.Generator) -> int:
    """One token from log p of all words [V]: the likeliest, or drawn."""
    if decoding.temperature == 0:
        return int(log_p.argmax())
    p = F.softmax(log_p.double() / decoding.temperature, dim=0)
    if decoding.top_p < 1:
        ordered, places = p.sort(descending=True, stable=True)
        kept = ordered.cumsum(0) - ordered < decoding.top_p  # the likeliest one always is
        p = torch.zeros_like(p).index_copy(0, places[kept], ordered[kept])
    return int(torch.multinomial(p, 1, generator=generator))
