"""Gate training: what the gate must not learn, and when its network is kept."""

import torch

from fedms.config.sections import GateConfig
from fedms.model import gate as gates
from fedms.model.statistics import FeatureSums, normalise
from fedms.training import gate_training as training

SIZE = 16


def federation(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = normalise(torch.randn(600, SIZE, generator=generator))
    return x, FeatureSums.of(x, torch.randint(0, 3, (600,), generator=generator), 3).discriminant()


def test_drawn_features_are_as_long_as_real_ones(monkeypatch):
    """Else the gate would learn to tell drawn from real features, which is not its task."""
    x, everyone = federation()
    lengths = []
    delta = gates.delta

    def watched(arrays, seen):
        lengths.append(seen.norm(dim=1))
        return delta(arrays, seen)

    monkeypatch.setattr(gates, "delta", watched)
    arrays = gates.fresh_gate(SIZE, 4, 16, 0, "client")
    trained = training.train_gate(
        arrays, x[:300], torch.zeros(300), everyone, None, GateConfig(), torch.Generator().manual_seed(0)
    )
    training.network_helps(trained, x[:50], torch.zeros(50), everyone, None, torch.Generator().manual_seed(0))
    assert len(lengths) > 1
    torch.testing.assert_close(torch.cat(lengths), torch.full((sum(map(len, lengths)),), SIZE**0.5))


def test_a_gate_that_tells_nothing_is_not_kept():
    x, everyone = federation()
    arrays = gates.fresh_gate(SIZE, 4, 16, 0, "client")
    assert not training.network_helps(
        arrays, x[:50], torch.zeros(50), everyone, None, torch.Generator().manual_seed(0)
    )


def test_a_gate_that_tells_own_from_drawn_is_kept():
    x, everyone = federation()
    own = normalise(x[:200] + 4 * torch.eye(SIZE)[0])  # a client whose features lean to one side
    arrays = gates.fresh_gate(SIZE, 4, 16, 0, "client")
    config = GateConfig(epochs=30, learning_rate=1e-2)
    trained = training.train_gate(
        arrays, own[:100], torch.zeros(100), everyone, None, config, torch.Generator().manual_seed(0)
    )
    assert training.network_helps(
        trained, own[100:], torch.zeros(100), everyone, None, torch.Generator().manual_seed(1)
    )
