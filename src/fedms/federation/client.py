"""The client's side: from a task to an update. One host serves any number of clients with one backbone.

A client's data and private state are read here and nowhere else. What leaves it is what its exchange answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedms.federation.activation import later_boundaries
from fedms.federation.client_folder import ClientFolder, Content, Recent
from fedms.federation.client_view import RECEIVED, STATE, ClientView
from fedms.federation.exchanges import TRAINING, find_exchange
from fedms.federation.exchanges.base import Answer, Cost
from fedms.federation.exchanges.local_training import Begun
from fedms.federation.masking import masked
from fedms.federation.messages import Situation, Task, Update
from fedms.federation.recipe import HEADS_FROM_NAMES, recipe_for
from fedms.federation.releasing import released
from fedms.federation.world import World
from fedms.model.arrays import Arrays, prefixed, split_name, strip
from fedms.model.parts import fresh_lora, group
from fedms.training.batched import BatchKey, Member
from fedms.training.expert_training import checked
from fedms.training.prefix_cache import PrefixCache
from fedms.training.prefix_store import PrefixStore
from fedms.training.runner import Runner

OUTPUTS_DIVISOR = 8
"""Fraction 1/OUTPUTS_DIVISOR of the cache memory is reserved for frozen experts' outputs."""
RECENT_BYTES = 32 * 2**20
"""Bytes of the clients' files that a process holds in memory, so that it need not read them again."""
KEPT_WHEN_SENT = ("global/", "discriminant.", "everyone.")
"""How the names of arrays begin that a client keeps once it was sent them."""


class ClientHost:
    """Handles tasks for any client of the world.

    `prefixes` is a folder of prefixes shared with other runs, if any.
    """

    def __init__(
        self, world: World, folder: Path, number: int = 0, workers: int = 1, prefixes: Path | None = None
    ) -> None:
        self.world = world
        self.config = world.config
        self.folder = folder
        self.recipe = recipe_for(self.config)
        cache = self.config.cache
        memory, disk = (budget * 2**20 // workers for budget in (cache.memory_mb, cache.disk_mb))
        room = memory // OUTPUTS_DIVISOR
        place = folder / "cache" / str(number)
        dtype = getattr(torch, cache.dtype)
        content = self.config.model_dump_json(
            include={"seed", "data", "model", "device", "precision", "deterministic"}
        )
        content += world.backbone.kernel
        store = PrefixStore(prefixes, cache.disk_mb * 2**20, content) if prefixes else None
        later = later_boundaries(self.config.activation, world.backbone.depth)
        kept = PrefixCache(
            world.backbone, world.inputs, memory - room, disk, place, cache.enabled, dtype, store, later
        )
        self.runner = Runner(world.backbone, kept, room)
        self._alone = workers == 1
        self._recent = Recent(RECENT_BYTES)
        self._folders: dict[str, ClientFolder] = {}

    def handle(self, task: Task) -> Update:
        """Do what the task asks."""
        exchange = find_exchange(task.kind)
        self.receive(task)
        view = self.view(task)
        return self.answered(task, view, exchange.answer(view, exchange.asked.of(task)))

    def receive(self, task: Task) -> None:
        """Begin, and keep what the task brings to be kept."""
        self.runner.begin()
        if not self._alone:  # another worker may have written since
            self._folders.clear()
            self._recent = Recent(RECENT_BYTES)
        if sent := {name: array for name, array in task.arrays.items() if name.startswith(KEPT_WHEN_SENT)}:
            sent = self._received(task) | self._drawn(task, sent) | sent
            self._folder(task).save(RECEIVED, (self._place(task), task.round), sent, {})

    def view(self, task: Task) -> ClientView:
        """What the client's side knows while it does this task, which it has received."""
        place = self._place(task)
        kept, when = self._folder(task).load(STATE, (place, task.round))
        if not kept and self.config.start_from is not None:
            kept, when = left_by(Path(self.config.start_from).expanduser() / "clients" / task.client)
        return ClientView(
            client=task.client,
            recipe=self.recipe,
            data=self.world.open_client(task.client),
            everyone=self.world.everyone,
            runner=self.runner,
            capacity=self.world.capacities[task.client],
            rank=self.world.ranks[task.client],
            class_embeddings=self._class_embeddings(task),
            folder=self._folder(task),
            version=(place, task.round),
            situation=Situation.of(task),
            arrays=task.arrays,
            received=self._received(task),
            kept=kept,
            kept_at=when,
        )

    def answered(self, task: Task, view: ClientView, answer: Answer) -> Update:
        """The answer as it leaves the client, with what it took: with noise under differential privacy, and
        masked where it is part of a sum.
        """
        update = answer.to_update(view.client, Cost(self.runner.flops, self.runner.once))
        if self.recipe.private:
            update = released(task, view, update)
        return masked(task, view, update) if self.config.privacy.secure_sum else update

    def close(self) -> None:
        """Let go of everything that is kept for speed alone."""
        self.runner.cache.close()

    def _folder(self, task: Task) -> ClientFolder:
        if task.client not in self._folders:
            path = self.folder / "clients" / task.client
            self._folders[task.client] = ClientFolder(path, self._recent)
        return self._folders[task.client]

    def _place(self, task: Task) -> int:
        return self.recipe.place(task.stage)

    def _received(self, task: Task) -> Arrays:
        """What the client was sent once; what this round brought is included."""
        return self._folder(task).load(RECEIVED, (self._place(task), task.round + 1))[0]

    def _drawn(self, task: Task, sent: Arrays) -> Arrays:
        """The A that belong to what was sent: one that nobody trained is not sent, but drawn again by the
        seed.
        """
        blocks = {split_name(name)[0] for name in strip(sent, "global/") if name.endswith(".lora_B")}
        fresh = fresh_lora(self.world.backbone, blocks, self.world.ranks[task.client], self.config.seed)
        return prefixed({name: array for name, array in fresh.items() if group(name) == "A"}, "global/")

    def _class_embeddings(self, task: Task) -> Tensor | None:
        """Where a head begins with them, or the accuracy before training is measured by them."""
        if self.config.task == "text":
            return None
        base = task.kind == "test" and self.world.backbone.kind == "text"
        needed = base or self.config.head.kind in HEADS_FROM_NAMES
        return self.world.class_embeddings if needed else None


def left_by(folder: Path) -> Content:
    """What a client trained and kept in a run that has ended; empty if it took no part."""
    client = ClientFolder(folder)
    newest = client.newest().get(STATE)
    return client.load(STATE, (newest[0], newest[1] + 1)) if newest else ({}, {})


@dataclass
class TrainingInStack:
    """One client's round of local training on its way through a stack."""

    host: ClientHost
    task: Task
    view: ClientView
    begun: Begun
    member: Member

    @classmethod
    def begin(cls, host: ClientHost, task: Task) -> TrainingInStack:
        """Receive the task and begin its training."""
        host.receive(task)
        view = host.view(task)
        begun = TRAINING.begin(view)
        member = Member(begun.expert, begun.plan, begun.samples, begun.order, host.runner.pause())
        return cls(host, task, view, begun, member)

    @property
    def key(self) -> BatchKey | None:
        """Clients of one key can train in one batch; None where this one cannot train with others."""
        return self.member.kind

    def conclude(self) -> Update:
        """The client's answer, when the stack has trained."""
        self.host.runner.resume(self.member.cost)
        loss = checked(self.member.loss, self.begun.plan)
        asked = TRAINING.asked.of(self.task)
        return self.host.answered(self.task, self.view, TRAINING.conclude(self.view, self.begun, loss, asked))
