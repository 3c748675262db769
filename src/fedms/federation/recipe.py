"""What a method needs, resolved from the config once.

Server, clients and the loop over rounds read it. None of them asks for a method's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedms.config import Config
from fedms.federation.method import Method, Stage
from fedms.federation.methods import of
from fedms.federation.prediction import Predictor, find_predictor
from fedms.model.discriminant import SHRINKAGES
from fedms.training.objectives.base import Objective
from fedms.training.objectives.classification import Classification

OwnKnowledge = Literal["sums", "counts", "references"]
"""What a model knows of its client's own training data: feature sums, label counts, or some features."""

HEADS_FROM_SUMS = ("statistics", "means")
HEADS_FROM_NAMES = ("text", "text-init")


@dataclass(frozen=True)
class Recipe:
    """One experiment's method, resolved."""

    config: Config
    method: Method
    """With the stages as they are run: `freeze-a` has no A in those that would share it."""
    predictor: Predictor
    """What predicts for a client in the end."""
    objective: Objective
    """What an expert's outputs are compared with, in training and in evaluation."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.method.stages

    @property
    def last_stage(self) -> Stage | None:
        """The last stage; None for a method that trains nothing."""
        return self.stages[-1] if self.stages else None

    @property
    def first_local_stage(self) -> Stage | None:
        """The first stage in which clients train experts of their own; None where there is none."""
        return next((stage for stage in self.stages if stage.expert == "local"), None)

    def place(self, stage: str) -> int:
        """The place of a stage in the method. What comes after all stages counts on."""
        names = [each.name for each in self.stages]
        return names.index(stage) if stage in names else len(names)

    def rounds(self, stage: Stage) -> int:
        federation = self.config.federation
        return federation.rounds_global if stage.budget == "global" else federation.rounds_local

    @property
    def scale(self) -> float:
        """alpha / r, the scale of every pair."""
        return self.config.lora.alpha / self.config.lora.rank

    @property
    def of_text(self) -> bool:
        """Whether next tokens are predicted, by the model's own frozen head."""
        return self.config.task == "text"

    @property
    def at_sites(self) -> bool:
        """Whether clients are sites, which may keep how good their models are."""
        return self.config.engine.name != "local"

    # experts

    @property
    def has_head(self) -> bool:
        """Whether experts have a head of their own."""
        return not self.of_text

    @property
    def has_global(self) -> bool:
        """Whether there is a global expert."""
        trains_one = not self.stages or any(stage.expert == "global" for stage in self.stages)
        return self.predictor.reads_experts and trains_one

    @property
    def has_local(self) -> bool:
        """Whether clients end with a local expert of their own."""
        return self.last_stage is not None and self.last_stage.expert == "local"

    @property
    def has_common_start(self) -> bool:
        """Whether everybody starts from one head: for a global expert, or since part of the local ones is
        shared.
        """
        return self.has_head and (self.has_global or any({*stage.shares} - {"gate"} for stage in self.stages))

    @property
    def starts_a_head(self) -> bool:
        """Whether that head is made here; it is not where another run's is taken over."""
        return self.has_common_start and self.config.start_from is None

    @property
    def has_prompt(self) -> bool:
        """Whether soft prompts train. They stand below all blocks, so no prefix is frozen."""
        return any("prompt" in stage.trains for stage in self.stages)

    @property
    def private(self) -> bool:
        """Whether answers are differentially private (docs/privacy.md). Then validation data choose nothing
        for all clients: what is chosen otherwise keeps the value in the config, or its first one.
        """
        return self.config.privacy.unit is not None

    # statistics

    @property
    def gate_reads_statistics(self) -> bool:
        """Whether the gate stands on the federation's statistics: it learns to tell own from everyone's."""
        learns = self.method.gate == "learned" and self.config.gate.objective == "own-or-everyone"
        return learns and not self.of_text

    @property
    def starts_from_statistics(self) -> bool:
        """Whether training or prediction stands on sums of the frozen backbone's features."""
        head = self.config.head.kind in HEADS_FROM_SUMS and self.starts_a_head
        gate = self.gate_reads_statistics and self.config.gate.features == "backbone"
        return head or gate or not self.predictor.reads_experts

    def begins_with_statistics(self, stage: Stage) -> bool:
        """Whether this stage begins with sums of the global expert's features, for its gate."""
        return "gate" in stage.trains and self.gate_reads_statistics and self.config.gate.features == "global"

    @property
    def sends_second_moment(self) -> bool:
        """Whether clients send the second moment: where it is asked for, and in secure sums."""
        sent = self.config.statistics.second_moment
        if sent == "auto":
            return self.config.privacy.secure_sum and not self.private
        return sent

    @property
    def releases(self) -> int:
        """How often a private client is asked for its sums: its budget is for so many releases."""
        later = any(map(self.begins_with_statistics, self.stages))
        return max(1, int(self.starts_from_statistics) + int(later))

    @property
    def shrinkages(self) -> tuple[float, ...]:
        """Candidates for the discriminant's shrinkage."""
        statistics = self.config.statistics
        if statistics.second_moment is False:
            return (1.0,)
        return SHRINKAGES if statistics.shrinkage == "auto" else (statistics.shrinkage,)

    @property
    def rederives_head(self) -> bool:
        """Whether the discriminant of the trained features may become the global expert's head."""
        head = self.config.head
        trained = any(stage.expert == "global" and "head" in stage.trains for stage in self.stages)
        wanted = head.rederive == "auto" and not self.private
        return self.has_head and wanted and head.kind in HEADS_FROM_SUMS and trained

    @property
    def chooses_label_prior(self) -> bool:
        """Whether validation chooses how many samples everyone's label shares count in a client's."""
        wanted = self.config.head.label_prior == "auto" and not self.private
        return wanted and self.has_local and self.has_common_start

    @property
    def predicts_from_discriminant(self) -> bool:
        """Whether a finished model reads the federation's discriminant."""
        return self.gate_reads_statistics or not self.predictor.reads_experts

    @property
    def own_knowledge(self) -> OwnKnowledge | None:
        """What a model knows of its client's own training data."""
        if self.gate_reads_statistics:
            return "sums"
        if self.method.label_prior or self.method.gate == "counts":
            return "counts"
        return "references" if self.predictor.compares_samples else None

    @property
    def routes_tokens(self) -> bool:
        """Whether a router that each client trains on its validation data weighs the experts by tokens."""
        return self.of_text and self.method.gate == "learned" and self.config.gate.objective == "likelihood"

    # the end

    @property
    def has_frontier(self) -> bool:
        """Whether predictions move with the prior."""
        return self.predictor.moves_with_prior or self.method.label_prior

    @property
    def chooses_interpolation(self) -> bool:
        """Whether validation chooses how far local experts go from their start."""
        wanted = self.config.mixture.interpolation is None and not self.private
        return wanted and self.method.predicts == "mixture"

    @property
    def chooses_weights(self) -> bool:
        """Whether validation chooses a constant weight, or the scales of the gate's evidence."""
        if self.private:
            return False
        by_tokens = self.of_text and self.method.gate == "learned" and not self.routes_tokens
        return self.method.gate == "constant" or self.gate_reads_statistics or by_tokens


def recipe_for(config: Config, method: Method | None = None) -> Recipe:
    """The recipe of an experiment, for the method that its config names or for another one.

    Raises:
        ConfigError: the method or its predictor is not known.
    """
    method = of(config) if method is None else method
    return Recipe(config, method, find_predictor(method.predicts), Classification())
