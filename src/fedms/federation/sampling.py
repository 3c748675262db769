"""Who is asked, drawn by the seed. Methods with the same budget ask the same clients."""

from __future__ import annotations

from collections.abc import Sequence

from fedms.config import Config
from fedms.core import seeds
from fedms.federation.method import Stage


class Sampling:
    """Draws clients.

    Attributes:
        clients: all clients, in the order of names.
    """

    def __init__(self, config: Config, clients: Sequence[str]) -> None:
        self.config = config
        self.clients = sorted(clients)

    def cohort(self, stage: Stage, round_number: int) -> list[str]:
        """The clients of a round, drawn anew each round."""
        size = self.config.federation.cohort_size(stage.budget, len(self.clients))
        generator = seeds.numpy_generator(self.config.seed, "cohort", stage.budget, round_number)
        chosen = generator.choice(len(self.clients), size, replace=False)
        return [self.clients[index] for index in sorted(chosen)]

    def others(self, stage: Stage, round_number: int) -> list[str]:
        """All other clients, in the order in which they are asked beside the cohort or in place of failed
        members.
        """
        cohort = {*self.cohort(stage, round_number)}
        rest = [client for client in self.clients if client not in cohort]
        generator = seeds.numpy_generator(self.config.seed, "others", stage.budget, round_number)
        return [rest[index] for index in generator.permutation(len(rest))]

    @property
    def validators(self) -> list[str]:
        """The clients on whose validation data the federation chooses."""
        return self.some("validation", self.config.evaluation.clients)

    def some(self, purpose: str, most: int | None) -> list[str]:
        """At most this many clients, always the same for the purpose; None: all."""
        if most is None or most >= len(self.clients):
            return self.clients
        generator = seeds.numpy_generator(self.config.seed, "some", purpose)
        return [
            self.clients[index] for index in sorted(generator.choice(len(self.clients), most, replace=False))
        ]
