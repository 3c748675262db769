"""Next-token probabilities in pieces, and the Bayes mixture of two experts by tokens."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fedms.model import next_token
from fedms.model.next_token import log_probability, log_ratio_so_far, mixed, score, token_weights


def drawn(tokens: int, size: int = 8, words: int = 13, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden, other = (torch.randn(tokens, size, generator=generator) for _ in range(2))
    return (
        hidden,
        other,
        torch.randn(words, size, generator=generator),
        torch.randint(words, (tokens,), generator=generator),
    )


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_pieces_give_the_value_and_the_gradient_of_the_whole(chunk, monkeypatch):
    monkeypatch.setattr(next_token, "CHUNK", chunk)
    hidden, _, words, targets = drawn(10)
    ours, theirs = (hidden.clone().requires_grad_(True) for _ in range(2))
    weights = torch.linspace(-1, 2, 10)
    found = log_probability(ours, words, targets)
    whole = -F.cross_entropy(theirs @ words.T, targets, reduction="none")
    assert torch.allclose(found, whole, atol=1e-6)
    (found * weights).sum().backward()
    (whole * weights).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 0.77, 1.0])
def test_the_interval_says_where_the_mixture_is_right(weight, monkeypatch):
    monkeypatch.setattr(next_token, "CHUNK", 7)
    hidden, other, words, targets = drawn(200, words=4)
    found = score(hidden, other, words, targets)
    one, two = ((each @ words.T).softmax(1) for each in (hidden, other))
    probabilities = torch.lerp(one, two, weight)
    right = probabilities.argmax(1) == targets
    assert torch.equal((found.low <= weight) & (weight <= found.high), right)
    assert 20 < int(right.sum()) < 180
    assert torch.allclose(found.own, log_probability(other, words, targets))
    assert torch.allclose(found.everyone, log_probability(hidden, words, targets))


def test_evidence_is_of_the_tokens_before_in_the_same_sequence():
    own, everyone = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.zeros(5)
    found = log_ratio_so_far(own, everyone, np.array([2, 3]))
    assert found.tolist() == [0.0, 1.0, 0.0, 4.0, 12.0]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-12, 0), st.floats(-12, 0)), min_size=1, max_size=40),
    st.floats(0.01, 0.99),
)
def test_the_bayes_mixture_loses_no_more_than_its_prior_says(said, prior):
    everyone, own = torch.tensor(said, dtype=torch.float64).unbind(1)
    ratio = log_ratio_so_far(own, everyone, np.array([len(said)]))
    total = float(mixed(everyone, own, token_weights(ratio, own, 1.0, prior)).sum())
    exact = torch.logaddexp(everyone.sum() + math.log(1 - prior), own.sum() + math.log(prior))
    assert total == pytest.approx(float(exact), abs=1e-6)  # the chain of predictions is the mixture itself
    assert (
        total >= max(float(own.sum()) + math.log(prior), float(everyone.sum()) + math.log(1 - prior)) - 1e-6
    )


def test_a_prior_of_zero_or_one_is_one_expert_alone():
    everyone, own = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -0.5])
    ratio = torch.tensor([5.0, -5.0])
    assert torch.equal(mixed(everyone, own, token_weights(ratio, own, 1.0, 0.0)), everyone)
    assert torch.equal(mixed(everyone, own, token_weights(ratio, own, 1.0, 1.0)), own)
