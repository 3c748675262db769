"""The router by tokens: it finds from the state which expert knows a token."""

import torch

from fedms.model.next_token import mixed
from fedms.model.token_router import BIAS, WEIGHT, fit_router, routed


def tokens(seed: int, count: int = 200, size: int = 6):
    """States; the local expert is right where the first component is positive, the global one elsewhere."""
    states = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    good, bad = torch.tensor(0.8).log(), torch.tensor(0.05).log()
    own = torch.where(states[:, 0] > 0, good, bad)
    return states, good + bad - own, own


def test_it_prefers_the_expert_that_knows_the_token():
    router = fit_router(*tokens(0))
    states, everyone, own = tokens(1)
    evidence = routed(router, states)
    assert ((evidence > 0) == (own > everyone)).float().mean() > 0.9
    best_constant = max(
        float(mixed(everyone, own, torch.full_like(own, weight)).mean())
        for weight in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    assert float(mixed(everyone, own, evidence.sigmoid()).mean()) > best_constant + 0.1


def test_few_tokens_give_small_weights_and_the_same_ones_each_time():
    states, everyone, own = tokens(2, count=3)
    one, other = (fit_router(states, everyone, own) for _ in range(2))
    assert torch.equal(one[WEIGHT], other[WEIGHT]) and torch.equal(one[BIAS], other[BIAS])
    assert one[WEIGHT].norm() < 10 and one[WEIGHT].isfinite().all()
