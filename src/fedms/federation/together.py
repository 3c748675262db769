"""A round of local training of several clients, in stacks where they can be stacked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from fedms.federation.client import ClientHost, TrainingInStack
from fedms.federation.messages import Task, Update
from fedms.training.batched import BatchKey, train_stack

Given = TypeVar("Given")
Done = TypeVar("Done")


def handle_together(host: ClientHost, tasks: Sequence[Task]) -> list[Update | Exception]:
    """The answers of `host.handle` to tasks of kind `train` of one round, or why a client failed; in their
    order.

    Clients that cannot be stacked are done one at a time. So are those of a stack that fails as a whole: then
    each fails for itself.
    """
    samples = [host.world.samples(task.client, "train") for task in tasks]
    boundary = tasks[0].settings["boundary"]
    if host.config.activation.rule != "warm":  # else the prefix may have pairs, which clients know
        # a client that fails, fails for itself below
        _attempt(lambda at: host.runner.cache.fill(samples, at), boundary)
    outcomes: dict[str, Update | Exception] = {}
    stacks = defaultdict[BatchKey | None, list[TrainingInStack]](list)
    for task in tasks:
        begun = _attempt(lambda task: TrainingInStack.begin(host, task), task)
        if isinstance(begun, Exception):
            outcomes[task.client] = begun
        else:
            stacks[begun.key].append(begun)
    for key, parts in stacks.items():
        trained = key is not None and len(parts) > 1 and _attempt(_train, parts) is None
        for part in parts:
            attempt = (
                _attempt(TrainingInStack.conclude, part) if trained else _attempt(host.handle, part.task)
            )
            outcomes[part.task.client] = attempt
    return [outcomes[task.client] for task in tasks]


def batch_key(host: ClientHost, task: Task) -> BatchKey | None:
    """Clients with the same key can train in one batch; without a key, a client trains alone."""
    return TrainingInStack.begin(host, task).key


def _train(parts: Sequence[TrainingInStack]) -> None:
    host, view = parts[0].host, parts[0].view
    train_stack(host.runner, [part.member for part in parts], view.boundary, host.config.training)


def _attempt(do: Callable[[Given], Done], given: Given) -> Done | Exception:
    try:
        return do(given)
    except Exception as error:
        return error
