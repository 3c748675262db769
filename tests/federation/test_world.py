"""A client is opened from its own rows: a process reads the inputs of the clients that it opened."""

from collections.abc import Callable

import numpy as np
import pytest

from fedms.config import Config
from fedms.core.errors import FedmsError
from fedms.data.federated import SPLITS
from fedms.federation.world import open_world


def test_inputs_are_those_of_opened_clients(settings: Callable[..., Config]) -> None:
    world = open_world(settings())
    own = [world.data.samples("client-1", split).rows for split in SPLITS]
    private = np.setdiff1d(np.concatenate(own[:2]), world.data.everyone("test").rows)
    with pytest.raises(KeyError, match="is not held here"):
        world.inputs.batch(private)
    view = world.open_client("client-1")
    assert list(view.clients) == ["client-1"] and view is world.open_client("client-1")
    world.inputs.batch(private)
    other = world.data.samples("client-2", "train").rows
    with pytest.raises(KeyError, match="is not held here"):
        world.inputs.lengths(other)
    with pytest.raises(FedmsError, match="no client 'nobody'"):
        world.open_client("nobody")


def test_a_view_gives_the_samples_and_batches_of_the_whole(settings: Callable[..., Config]) -> None:
    world = open_world(settings())
    for name in world.clients:
        view = world.open_client(name)
        for split in SPLITS:
            own, whole = view.samples(name, split), world.data.samples(name, split)
            assert own.owner == whole.owner and own.rows.tolist() == whole.rows.tolist()
            assert own.labels.tolist() == whole.labels.tolist()
            assert [world.opened[row] for row in own.rows] == [world.dataset.inputs[row] for row in own.rows]
        assert view.everyone("test").rows.tolist() == world.everyone["test"].rows.tolist()
    assert world.data.counts().tolist() == world.partition.counts(world.dataset.labels, 3).tolist()
