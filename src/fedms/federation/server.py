"""The server's side: what is shared, what clients are sent, and how answers become the new shared state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fedms.config import Config
from fedms.federation.activation import Activation
from fedms.federation.aggregation.registry import aggregator_for
from fedms.federation.exchanges.base import Asked, Exchange
from fedms.federation.ledger import Ledger
from fedms.federation.messages import Situation, Task, Update
from fedms.federation.method import Method, Stage
from fedms.federation.recipe import Recipe
from fedms.federation.sampling import Sampling
from fedms.model.arrays import Arrays, block_of, prefixed, strip
from fedms.model.backbone import Backbone
from fedms.model.discriminant import Discriminant
from fedms.model.gate import ADAPTER, fresh_gate
from fedms.model.heads import mixed_head, nearest_head, statistics_head, zero_head
from fedms.model.parts import fresh_lora, fresh_parts, group, trained_names


class Server:
    """The state of a federation between rounds. It holds no samples, and nothing private of any client.

    Attributes:
        sampling: draws who is asked.
        ledger: what is known of each client.
        shared: what the present stage averages.
        frozen: what no stage averages any more: the start of what is private, and the settled global expert.
        edition: counts the changes of `frozen`.
        frozen_in: the edition in which each frozen array came, so that a client is sent what it lacks.
        discriminant: of the federation's sums, once clients have sent them.
        settled: whether the global expert is finished and frozen.
        head_share: the share of the re-derived head in the global expert's, once it is chosen.
        label_prior: how many samples everyone's label shares count in a client's; None leaves the label prior
            out.
        averaged: stage, round and weights by block of the present average, where clients take themselves out
            of it; and the clients in it.
        adapter: the pairs from which the global expert starts (`model.adapter`).
        gate: what is shared of the gate where the run goes on from another one (`start_from`).
    """

    def __init__(
        self,
        recipe: Recipe,
        backbone: Backbone,
        clients: Sequence[str],
        ranks: Mapping[str, int],
        adapter: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.recipe = recipe
        self.adapter = adapter or {}
        self.gate: Arrays = {}
        self.ranks = ranks
        self.backbone = backbone
        self.sampling = Sampling(recipe.config, clients)
        self.ledger = Ledger()
        self.activation = Activation(recipe.config.activation, backbone.depth)
        self.shared: Arrays = {}
        self.frozen: Arrays = {}
        self.edition = 0
        self.frozen_in: dict[str, int] = {}
        self.head_share: float | None = None
        wanted = recipe.config.head.label_prior
        self.label_prior = None if wanted == "none" else 1.0 if wanted == "auto" else wanted
        self.discriminant: Discriminant | None = None
        self.settled = False
        self.averaged: dict[str, Any] = {}

    @property
    def config(self) -> Config:
        return self.recipe.config

    @property
    def method(self) -> Method:
        return self.recipe.method

    @property
    def clients(self) -> list[str]:
        """All clients, in the order of names."""
        return self.sampling.clients

    # what is asked

    def active(self, stage: Stage | None) -> list[int]:
        """The active blocks; none outside all stages."""
        if stage is None or stage.activation == "none":
            return []
        if stage.activation == "all":
            return list(range(self.backbone.depth))
        return self.activation.blocks() if stage.expert == "global" else self.activation.local_blocks()

    def trained(self, stage: Stage) -> list[int]:
        """The blocks that have been active in this stage so far."""
        if stage.activation != "sal" or stage.expert != "global":
            return self.active(stage)
        return self.activation.blocks(self.activation.trained)

    def boundary(self, stage: Stage | None) -> int:
        """The lowest block that trains in this stage or an earlier one; 0 with soft prompts, which stand
        below all blocks.
        """
        if self.recipe.has_prompt:
            return 0
        stages = self.recipe.stages
        so_far = stages[: stages.index(stage) + 1] if stage else ()
        return min((block for each in so_far for block in self.active(each)), default=self.backbone.depth)

    def tasks(
        self,
        exchange: Exchange[Any, Any, Any],
        clients: Sequence[str],
        stage: Stage | None,
        number: int,
        arrays: Arrays | None = None,
        asked: Asked | None = None,
    ) -> list[Task]:
        """One task a client: the situation, these arrays, and frozen arrays that it does not have yet."""
        name = stage.name if stage else "end"
        asked = exchange.asked() if asked is None else asked
        made = []
        for client in clients:
            sent = self._cut(arrays or {}, client)
            if lacking := self._lacking(client):
                sent |= prefixed(self._cut(lacking, client), "global/")
                if self.discriminant:
                    sent["everyone.prior"] = self.discriminant.prior.clone()  # which may go along itself
            if self.discriminant and client not in self.ledger.informed and self._reads_sums(exchange, stage):
                sent |= self.discriminant.to_arrays()
            settings = exchange.settings(self._situation(stage, client), asked)
            made.append(Task(exchange.kind, client, name, number, sent, settings))
        return made

    def _situation(self, stage: Stage | None, client: str) -> Situation:
        last = stage or self.recipe.last_stage
        known = self.discriminant
        calibration = (known.shrinkage, known.temperature) if known else None
        averaged = None
        if client in self.averaged.get("clients", ()):
            averaged = {key: value for key, value in self.averaged.items() if key != "clients"}
        active, boundary = tuple(self.active(last)), self.boundary(last)
        return Situation(active, boundary, calibration, self.label_prior, averaged)

    def _lacking(self, client: str) -> Arrays:
        """Frozen arrays that the client does not have yet."""
        seen = self.ledger.delivered.get(client, 0)
        return {name: array for name, array in self.frozen.items() if self.frozen_in[name] > seen}

    def _freeze(self, arrays: Arrays) -> None:
        """These arrays are averaged no more; clients are sent them once."""
        self.edition += 1
        self.frozen |= arrays
        self.frozen_in |= dict.fromkeys(arrays, self.edition)

    def _reads_sums(self, exchange: Exchange[Any, Any, Any], stage: Stage | None) -> bool:
        """Whether a client needs the discriminant for this, even if it had no part in making it, or failed
        then.
        """
        local = exchange.kind == "train" and stage is not None and stage.expert == "local"
        needed = (local or exchange.kind in ("weigh", "test")) and self.recipe.predicts_from_discriminant
        return needed or exchange.kind == "head"

    def _cut(self, arrays: Arrays, client: str) -> Arrays:
        """Pairs at the rank that the client can take."""
        rank = self.ranks[client]
        if rank == self.config.lora.rank:
            return dict(arrays)
        cut = {"A": lambda array: array[:rank], "B": lambda array: array[:, :rank].contiguous()}
        return {
            name: cut[matrix](array) if (matrix := group(name)) in cut else array
            for name, array in arrays.items()
        }

    def record_delivery(self, tasks: Sequence[Task], updates: Sequence[Update]) -> None:
        """Record what has reached the clients that answered."""
        self.ledger.record_delivery(tasks, updates, self.edition)

    # state

    def take_over(self, arrays: Arrays, meta: Mapping[str, Any]) -> None:
        """Begin where another run ended: with its experts, its gate and its active blocks."""
        left = strip(arrays, "frozen/") | strip(arrays, "shared/")
        self.gate = {name: array for name, array in left.items() if group(name) == "gate"}
        self.shared = {name: array for name, array in left.items() if name not in self.gate}
        self.activation.active = meta["activation"]["active"]

    def begin(self, stage: Stage) -> None:
        """Lay out what the stage shares."""
        if stage.expert == "local":
            self.settle()
        if not self.settled:
            self._lay_out(stage)
        if "gate" in stage.shares and self.config.gate.share == "adapter":
            gate = self.config.gate
            fresh = fresh_gate(
                self.backbone.feature_size, gate.adapter_rank, gate.hidden, self.config.seed, ""
            )
            self.shared = {name: (fresh | self.gate)[name] for name in ADAPTER}
        elif "gate" in stage.shares and self.gate:
            self.shared = {name: array.clone() for name, array in self.gate.items()}

    def _lay_out(self, stage: Stage) -> None:
        """Fresh arrays for what is shared and not there yet.

        A start that is not shared reaches each client once.
        """
        names = trained_names(self.backbone, stage.shares, self.active(stage), self.config.head.kind)
        fresh = self._fresh(stage)
        self._freeze({name: array for name, array in self.shared.items() if name not in names})
        self.shared = {name: (fresh | self.shared)[name] for name in names}

    def _fresh(self, stage: Stage) -> Arrays:
        config = self.config
        pairs = fresh_lora(self.backbone, self.active(stage), config.lora.rank, config.seed)
        pairs |= {name: array for name, array in self.adapter.items() if name in pairs}
        return pairs | fresh_parts(self.backbone, stage.shares, (), config.model.prompt_tokens, config.seed)

    def settle(self) -> None:
        """The shared expert becomes the frozen global one that later stages stand on."""
        if self.settled or not self.recipe.has_global:
            return
        # all of it, so that a run with another's first stage, whose clients have nothing yet, sends the same
        self._freeze(self.frozen | self.shared)
        self.shared, self.settled = {}, True

    def rederive_head(self, share: float) -> None:
        """Put this share of the discriminant into the settled global expert's head."""
        assert self.discriminant is not None
        self.head_share = share
        if share:
            self._freeze(mixed_head(self.frozen, statistics_head(self.discriminant), share))

    def start_head(self, classes: int, class_embeddings: Tensor | None) -> None:
        """The head from which everybody starts."""
        kind = self.config.head.kind
        if kind in ("statistics", "means"):
            assert self.discriminant is not None
            means = self.discriminant.means
            self.shared |= statistics_head(self.discriminant) if kind == "statistics" else nearest_head(means)
        elif kind == "linear":
            self.shared |= zero_head(classes, self.backbone.feature_size)
        else:
            assert class_embeddings is not None
            self.shared |= nearest_head(class_embeddings, frozen=kind == "text")

    def aggregate(self, stage: Stage, number: int, updates: Sequence[Update]) -> None:
        """The new shared state, from the clients' updates."""
        if stage.average == "beside":
            weights: dict[str, float] = defaultdict(float)  # by block: a client may train some blocks only
            for update in updates:
                for block in {block_of(name) for name in update.arrays}:
                    weights[str(block)] += update.weight
            clients = sorted(update.client for update in updates)
            self.averaged = {
                "stage": stage.name,
                "round": number,
                "weights": dict(weights),
                "clients": clients,
            }
        aggregator = aggregator_for(self.config.federation, stage.averages_products)
        self.shared = aggregator.combine(self.shared, updates, self.config)

    def needs_no_score(self, stage: Stage, number: int) -> bool:
        """Whether the same blocks stay active after this round, whatever its validation score."""
        return not _grows(stage) or self.activation.stays(self.recipe.rounds(stage) - number)

    def observe(self, stage: Stage, number: int, score: float | None) -> bool:
        """Tell the activation how this round of the stage went; True where other blocks are active now."""
        left = self.recipe.rounds(stage) - number
        if not _grows(stage) or not self.activation.observe(score, left):
            return False
        active = {None, *self.active(stage)}
        if cold := {name: array for name, array in self.shared.items() if block_of(name) not in active}:
            self._freeze(cold)
            self.shared = {name: array for name, array in self.shared.items() if name not in cold}
        self.shared |= {name: array for name, array in self._fresh(stage).items() if name not in self.shared}
        return True

    def expect_discriminant(self) -> None:
        """Another discriminant is about to be sent. Nobody has it yet."""
        self.ledger.informed.clear()

    def learn(self, discriminant: Discriminant) -> None:
        """Take over the discriminant that clients have been sent, at its shrinkage and temperature."""
        self.discriminant = discriminant

    # checkpoints

    def checkpoint(self) -> tuple[Arrays, dict[str, Any]]:
        """All that is needed to go on."""
        arrays = prefixed(self.shared, "shared/") | prefixed(self.frozen, "frozen/")
        if self.discriminant:
            arrays |= self.discriminant.to_arrays()
        return arrays, {
            "activation": self.activation.state(),
            **self.ledger.state(),
            "settled": self.settled,
            "edition": self.edition,
            "frozen_in": dict(sorted(self.frozen_in.items())),
            "head_share": self.head_share,
            "label_prior": self.label_prior,
            "averaged": self.averaged,
        }

    def restore(self, arrays: Arrays, meta: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.shared, self.frozen = strip(arrays, "shared/"), strip(arrays, "frozen/")
        self.discriminant = Discriminant.from_arrays(arrays) if "discriminant.means" in arrays else None
        self.activation.restore(meta["activation"])
        self.ledger.restore(meta)
        self.settled, self.averaged = meta["settled"], meta["averaged"]
        self.edition, self.frozen_in = meta["edition"], dict(meta["frozen_in"])
        self.head_share, self.label_prior = meta["head_share"], meta["label_prior"]


def _grows(stage: Stage) -> bool:
    """Whether the number of active blocks can change within this stage."""
    return stage.activation == "sal" and stage.expert == "global"
