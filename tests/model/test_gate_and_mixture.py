"""The gate starts as the evidence alone and follows the prior; every mixture is a distribution."""

import pytest
import torch

from fedms.model.gate import ADAPTER, NETWORK, adapt, delta, fresh_gate, local_weight, mix

EVIDENCE = torch.tensor([-200.0, -3.0, 0.0, 0.5, 4.0, 200.0])


@pytest.fixture
def gate():
    return fresh_gate(12, adapter_rank=5, hidden=7, seed=3, client="client-1")


def test_a_fresh_gate_has_the_named_arrays_and_no_others(gate):
    assert tuple(gate) == ADAPTER + NETWORK
    assert [tuple(array.shape) for array in gate.values()] == [(5, 12), (12, 5), (7, 12), (7,), (1, 7), (1,)]


def test_the_adapter_is_the_identity_while_u_is_zero_and_delta_is_zero_at_the_start(gate, generator):
    x = torch.randn(9, 12, generator=generator)
    assert torch.equal(adapt(gate, x), x)
    assert torch.equal(delta(gate, x), torch.zeros(9))


def test_the_adapter_adds_u_gelu_d_u(gate, generator):
    x, up = torch.randn(9, 12, generator=generator), torch.randn(12, 5, generator=generator)
    gate["gate.adapter.up"] = up
    expected = x + torch.nn.functional.gelu(x @ gate["gate.adapter.down"].T) @ up.T
    torch.testing.assert_close(adapt(gate, x), expected)


def test_the_adapter_starts_the_same_for_every_client_and_the_network_does_not(gate):
    other = fresh_gate(12, 5, 7, seed=3, client="client-2")
    reseeded = fresh_gate(12, 5, 7, seed=4, client="client-1")
    assert all(torch.equal(gate[name], other[name]) for name in ADAPTER)
    assert not torch.equal(gate["gate.network.hidden.weight"], other["gate.network.hidden.weight"])
    assert not torch.equal(gate["gate.adapter.down"], reseeded["gate.adapter.down"])


def test_the_whole_gate_can_learn(gate, generator):
    """Every array gets a gradient once the zero layers have moved by one step."""
    leaves = {name: array.clone().requires_grad_() for name, array in gate.items()}
    optimizer = torch.optim.SGD(leaves.values(), lr=0.1)
    x, truth = torch.randn(64, 12, generator=generator), torch.arange(64) % 2
    for _ in range(3):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(delta(leaves, x), truth.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.isfinite(leaf.grad).all() and leaf.grad.abs().max() > 0 for leaf in leaves.values())


def test_prior_zero_and_one_give_exactly_one_expert_whatever_the_evidence():
    assert torch.equal(local_weight(EVIDENCE, 0.0), torch.zeros(6))
    assert torch.equal(local_weight(EVIDENCE, 1.0), torch.ones(6))


def test_an_even_prior_leaves_the_evidence_and_a_prior_is_bayes_rule():
    torch.testing.assert_close(local_weight(EVIDENCE, 0.5), torch.sigmoid(EVIDENCE))
    ratio = torch.tensor([0.1, 1.0, 7.0])
    for prior in (0.01, 0.3, 0.9):
        torch.testing.assert_close(
            local_weight(ratio.log(), prior), prior * ratio / (prior * ratio + 1 - prior)
        )


def test_the_weight_grows_with_the_prior_and_with_the_evidence():
    weights = torch.stack(
        [local_weight(EVIDENCE, prior) for prior in (0.0, 1e-6, 0.1, 0.4, 0.5, 0.9, 1 - 1e-6, 1.0)]
    )
    assert (weights.diff(dim=0) >= 0).all()
    assert (weights.diff(dim=1) >= 0).all()
    assert (weights[:6, 1:5].diff(dim=0) > 0).all()
    assert ((weights >= 0) & (weights <= 1)).all()


# the mixture

BOTH = pytest.mark.parametrize("on", ["probabilities", "logits"])


@pytest.fixture
def experts(generator):
    """Logits of the global and the local expert, some of them extreme."""
    scale = torch.tensor([1.0, 1.0, 5.0, 60.0])[:, None]
    return torch.randn(4, 5, generator=generator) * scale, torch.randn(4, 5, generator=generator) * scale


@BOTH
@pytest.mark.parametrize("weight", [0.0, 1e-30, 0.2, 0.5, 1 - 1e-7, 1.0])
def test_every_row_of_a_mixture_sums_to_one(experts, on, weight):
    probabilities = mix(experts[0], experts[1], torch.full((4,), weight), on).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))


@BOTH
def test_weight_zero_or_one_gives_one_expert_alone(experts, on):
    for weight, expert in zip((0.0, 1.0), experts, strict=True):
        made = mix(experts[0], experts[1], torch.full((4,), weight), on)
        torch.testing.assert_close(made.exp(), expert.softmax(1))
        torch.testing.assert_close(made[:3], expert.log_softmax(1)[:3])


def test_a_mixture_weighs_each_sample_by_its_own_weight(experts):
    weight = torch.tensor([0.1, 0.4, 0.7, 1.0])
    everyone, own = experts
    expected = (1 - weight[:, None]) * everyone.softmax(1) + weight[:, None] * own.softmax(1)
    torch.testing.assert_close(mix(everyone, own, weight).exp(), expected)
    expected = ((1 - weight[:, None]) * everyone + weight[:, None] * own).softmax(1)
    torch.testing.assert_close(mix(everyone, own, weight, "logits").exp(), expected)


def test_the_two_weights_add_up_to_one():
    """If both experts agree, the mixture agrees with them, for any gate."""
    logits = torch.randn(6, 5)
    for prior in (0.0, 0.3, 1.0):
        torch.testing.assert_close(
            mix(logits, logits, local_weight(EVIDENCE, prior)).exp(), logits.softmax(1)
        )


@BOTH
@pytest.mark.parametrize("prior", [0.0, 0.3, 1.0])
def test_gradients_are_finite(experts, on, prior):
    everyone, own, evidence = (
        x.clone().requires_grad_() for x in (*experts, torch.tensor([-200.0, -90.0, 0.0, 200.0]))
    )
    loss = torch.nn.functional.nll_loss(
        mix(everyone, own, local_weight(evidence, prior), on), torch.tensor([0, 1, 2, 3])
    )
    loss.backward()
    assert torch.isfinite(loss)
    for leaf in (everyone, own) if prior in (0.0, 1.0) else (everyone, own, evidence):
        assert torch.isfinite(leaf.grad).all()
