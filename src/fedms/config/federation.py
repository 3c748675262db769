"""The section `federation` of a config: rounds, cohorts, failures and aggregation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from fedms.config.sections import Section
from fedms.core.paths import alike, is_name
from fedms.core.registry import Names

AGGREGATIONS = Names("federation.aggregation", "average", "exact", "freeze-a", "svd")
"""The values of `federation.aggregation`. Plug-ins add names; `fedms.federation.aggregation` holds the
functions."""
ROBUST_MEANS = Names("federation.robust", "none", "median", "trimmed-mean", "multi-krum", "norm-clip")
"""The values of `federation.robust`."""
Uplink = Literal["float32", "bfloat16", "int8", "int4"]
"""The values of `federation.uplink`."""
USUAL_COHORT = 10
"""Clients of a cohort by default"""


class FederationConfig(Section):
    """Rounds, cohorts, failures and aggregation."""

    cohort: int | None = Field(None, ge=1)
    """Clients asked in each round of the global stage; default: 10, or all clients if there are fewer."""
    cohort_local: int | None = Field(None, ge=1)
    """Clients asked in each round of the local stage; default: all clients."""
    oversample: int = Field(0, ge=0)
    """Clients asked in each round in addition to the cohort, in case some fail. The round uses only as many
    answers as the cohort has clients."""
    quorum: int = Field(1, ge=1)
    """Fewest answers that a round needs. With fewer, other clients are asked in place of those that
    failed."""
    deadline_seconds: float | None = Field(None, gt=0, lt=1e9)
    """Longest time to wait for one answer of a client, in seconds; default: no limit. On this machine clients
    take turns, and the time of a client starts with its turn."""
    sites: tuple[str, ...] = ()
    """Names of the sites, for engine `flower`; default: those that are there when the run starts. A run with
    named sites can start before all of them are there, if `data.classes` are named, too."""
    attempts: int = Field(3, ge=1)
    """How often a round asks for the answers that it needs, the first time included, before the run stops."""
    rounds_global: int = Field(10, ge=0, le=1_000_000)
    """Rounds of the first, global stage (T1)."""
    rounds_local: int = Field(3, ge=0, le=1_000_000)
    """Rounds of the second, local stage (T2)."""
    aggregation: str = "average"
    """How LoRA pairs are averaged: `average` (A and B separately), `exact` (the exact mean of the products
    BA), `freeze-a` (only B is trained and averaged), `svd` (the mean of the products, cut to the rank), or
    the name of a plug-in."""
    uplink: Uplink = "float32"
    """Number type in which trained arrays travel from clients to the server. All but `float32` send the
    difference to what the client was sent, rounded at random so that the mean is right; `int8` and `int4`
    with a scale for each row. Statistics always travel as float32."""
    robust: str = "none"
    """Robust aggregation in place of the mean, if clients may send false updates: `none`, `median`,
    `trimmed-mean`, `multi-krum`, `norm-clip`, or the name of a plug-in. Needs `aggregation` `average` or
    `freeze-a`."""
    liars: float = Field(0.2, ge=0, lt=0.5)
    """Share of a round's clients that may send false updates: `trimmed-mean` cuts this share at each end,
    `multi-krum` leaves out this share."""

    @field_validator("aggregation", "robust")
    @classmethod
    def _check_names(cls, value: str, info: ValidationInfo) -> str:
        known = AGGREGATIONS if info.field_name == "aggregation" else ROBUST_MEANS
        if value not in known:
            raise PydanticCustomError("name", "Input should be {allowed}", {"allowed": str(known)})
        return value

    @field_validator("sites")
    @classmethod
    def _check_sites(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if (wrong := next((name for name in value if not is_name(name)), None)) is not None:
            raise PydanticCustomError("site", "{wrong} cannot be a folder's name", {"wrong": repr(wrong)})
        if pair := alike(value) or next(((name, name) for name in value if value.count(name) > 1), None):
            raise PydanticCustomError(
                "site", "two sites have one name: {one}, {other}", {"one": pair[0], "other": pair[1]}
            )
        return value

    def cohort_size(self, stage: Literal["global", "local"], clients: int) -> int:
        """Clients asked in each round of a stage, of this number of clients."""
        if stage == "local":
            return self.cohort_local or clients
        return self.cohort or min(USUAL_COHORT, clients)

    def check(self, clients: int) -> None:
        """Raise ValueError if a cohort is larger than the number of clients or smaller than the quorum, or if
        sites are named and there is another number of clients.
        """
        if self.sites and len(self.sites) != clients:
            raise ValueError(
                f"federation.sites: {len(self.sites)} sites are named, but partition.clients is {clients}"
            )
        stages: tuple[Literal["global", "local"], ...] = ("global", "local")
        for key, stage in zip(("cohort", "cohort_local"), stages, strict=True):
            size = self.cohort_size(stage, clients)
            if size > clients:
                raise ValueError(f"federation.{key}: {size} is more than partition.clients ({clients})")
            if size < self.quorum:
                raise ValueError(f"federation.quorum: {self.quorum} is more than federation.{key} ({size})")
