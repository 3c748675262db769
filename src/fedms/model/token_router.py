"""A router by tokens: the weight of the local expert from the global expert's state before each token.

    g_t = sigmoid(logit(prior) + w u_t + b),   u_t = the state that predicts token t, scaled to length sqrt(d)

A client fits w and b to its own validation tokens, which neither expert has trained on, by the likelihood of
the mixture: as CoMiGS (arXiv 2409.13931) trains its routers, which stand in every layer; ours is one, over
the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedms.model.next_token import mixed
from fedms.model.statistics import normalise

WEIGHT, BIAS = "router.weight", "router.bias"
PENALTY = 0.01
"""Of the squared weights: a client has far fewer validation tokens than weights would like."""
STEPS = 50


def fit_router(states: Tensor, everyone: Tensor, own: Tensor) -> dict[str, Tensor]:
    """The router of these tokens.

    Args:
        states: of the global expert, before each token, [T, d].
        everyone, own: log p of each token under the global and the local expert, [T].
    """
    x = normalise(states.float())
    weight = torch.zeros(x.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        said = mixed(everyone, own, torch.sigmoid(x @ weight + bias))
        found = PENALTY * weight.square().sum() - said.mean()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return {WEIGHT: weight.detach(), BIAS: bias.detach()}


def routed(arrays: Mapping[str, Tensor], states: Tensor) -> Tensor:
    """w u + b of each state [T, d], [T]; above 0 where the local expert is preferred."""
    return normalise(states.float()) @ arrays[WEIGHT] + arrays[BIAS]
