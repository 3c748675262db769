"""The section `federation` of a config: who is asked, how many answers are needed, how long we wait, and what comes of the answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedms.config_keys import Section


class Federation(Section):
    cohort: int = Field(10, ge=1)
    """Clients asked in a round of the global stage."""
    cohort_local: int | None = Field(None, ge=1)
    """Clients asked in a round of the local stage; default: all of them."""
    oversample: int = Field(0, ge=0)
    """Further clients asked in a round, as far as there are more, in case some fail: of those that answer, it takes a cohort's number."""
    quorum: int = Field(1, ge=1)
    """Answers that a round needs; with fewer, other clients are asked in place of those that failed."""
    deadline_seconds: float | None = Field(None, gt=0, lt=1e9)
    """How long we wait for a client's answer, whatever it was asked; default: for ever. On this machine, where clients take turns, its
    time begins with its turn."""
    attempts: int = Field(3, ge=1)
    """How often clients are asked for the answers that are needed, the first time included, before the run stops."""
    rounds_global: int = Field(10, ge=0, le=1_000_000)
    """Rounds of the first stage (T1)."""
    rounds_local: int = Field(3, ge=0, le=1_000_000)
    """Rounds of the second stage (T2)."""
    aggregation: Literal["average", "exact", "freeze-a", "svd"] = "average"
    """`average` (A and B apart), `exact` (the mean of the products BA, nothing lost), `freeze-a` (train B only), `svd` (the mean of
    the products, cut to the rank)."""
    robust: Literal["none", "median", "trimmed-mean", "multi-krum", "norm-clip"] = "none"
    """What stands in the mean's place where clients may lie; with `aggregation` `average` or `freeze-a`."""
    liars: float = Field(0.2, ge=0, lt=0.5)
    """Share of a round's clients that may lie: what `trimmed-mean` cuts at each end, and `multi-krum` leaves out."""

    def check(self, clients: int) -> None:
        """ValueError where there are not as many clients as a round asks, or a round does not ask as many as it needs."""
        for key in ("cohort", "cohort_local"):
            value = getattr(self, key)
            if value is not None and value > clients:
                raise ValueError(f"federation.{key}: {value} is more than partition.clients ({clients})")
            if value is not None and value < self.quorum:
                raise ValueError(f"federation.quorum: {self.quorum} is more than federation.{key} ({value})")
