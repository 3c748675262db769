"""A round of local training of several clients, stacked where they can be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from fedms.federation.client import ClientHost, Ready
from fedms.federation.messages import Task, Update
from fedms.training.batched import BatchKey, Member, train_stack
from fedms.training.expert_training import checked

Given = TypeVar("Given")
Done = TypeVar("Done")


def handle_together(host: ClientHost, tasks: Sequence[Task]) -> list[Update | Exception]:
    """What `host.handle` answers to each of these tasks of one round, all of kind `train`, or why a client failed; in their order.

    Those that cannot be stacked are done one at a time. So are those of a stack that fails as a whole: then each fails for itself.
    """
    samples = [host.world.samples(task.client, "train") for task in tasks]
    _attempt(
        lambda boundary: host.runner.cache.fill(samples, boundary), host.boundary(tasks[0])
    )  # who fails, fails for itself below
    outcomes: dict[str, Update | Exception] = {}
    stacks = defaultdict[BatchKey | None, list[_Part]](list)
    for task in tasks:
        begun = _attempt(lambda task: _Part(host, task), task)
        if isinstance(begun, Exception):
            outcomes[task.client] = begun
        else:
            stacks[begun.member.kind].append(begun)
    for kind, parts in stacks.items():
        trained = kind is not None and len(parts) > 1 and _attempt(_train, parts) is None
        for part in parts:
            outcomes[part.task.client] = (
                _attempt(_Part.conclude, part) if trained else _attempt(host.handle, part.task)
            )
    return [outcomes[task.client] for task in tasks]


def batch_key(host: ClientHost, task: Task) -> BatchKey | None:
    """Clients with the same key can train in one batch; without a key, a client trains alone."""
    return _Part(host, task).member.kind


class _Part:
    """One client's task on its way through a stack."""

    def __init__(self, host: ClientHost, task: Task) -> None:
        host.receive(task)
        self.host = host
        self.task = task
        self.ready: Ready = host.ready(task)
        self.member = Member(
            self.ready.expert, self.ready.plan, self.ready.samples, self.ready.order, host.runner.pause()
        )

    def conclude(self) -> Update:
        """When the stack has trained: its client's answer."""
        self.host.runner.resume(self.member.cost)
        return self.host.trained(self.task, self.ready, checked(self.member.loss))


def _train(parts: Sequence[_Part]) -> None:
    host, task = parts[0].host, parts[0].task
    train_stack(host.runner, [part.member for part in parts], host.boundary(task), host.config.training)


def _attempt(do: Callable[[Given], Done], given: Given) -> Done | Exception:
    try:
        return do(given)
    except Exception as error:
        return error
