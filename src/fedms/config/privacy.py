"""The section `privacy` of a config: what the server may learn of a single client, or of a single record."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from fedms.config.sections import Section


class PrivacyConfig(Section):
    """What the server may learn of a single client, or of a single record."""

    secure_sum: bool = False
    """Whether averages, statistics, likelihoods, losses and hits reach the server as sums over clients alone
    (docs/secure-sums.md). Needs the extra `fedms[privacy]`."""
    least: int = Field(3, ge=3)
    """Fewest clients in a secure sum. A client takes part in no smaller one."""
    unit: Literal["record", "client"] | None = None
    """What differential privacy protects (docs/privacy.md): one training sample of a client (`record`), or
    all data of a client (`client`); default: neither. Needs the extra `fedms[privacy]`."""
    epsilon: float | None = Field(None, gt=0, le=1000)
    """Budget of each client, with `unit`. The client itself refuses what is beyond it."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """The delta of that budget, well below one over the number of records, or of clients."""
    noise: Literal["own", "shared", "seeded"] = "own"
    """Who adds the noise: each client all of it (`own`), or a share of it, so that only the secure sum is
    private (`shared`: far more accurate; each client's share counts on `least` clients). Both take it from
    the system. `seeded` draws it by the run's seed, for simulation: it protects nobody."""
    clip: float = Field(100.0, gt=0)
    """With `unit: client`, the most that a client's answer weighs, in training samples of one class."""

    @model_validator(mode="after")
    def _check(self) -> PrivacyConfig:
        if self.unit is not None and self.epsilon is None:
            raise ValueError("epsilon: needed with `unit`; such as 4")
        if self.unit is None and self.epsilon is not None:
            raise ValueError("unit: needed with `epsilon`; allowed: record, client")
        if self.noise == "shared" and not self.secure_sum:
            raise ValueError("noise: `shared` needs `secure_sum: true`, or the server sees single answers")
        return self

    @property
    def protects(self) -> bool:
        """Whether anybody is protected: noise that the run's seed draws can be subtracted."""
        return self.unit is not None and self.noise != "seeded"

    @property
    def noise_share(self) -> float:
        """Deviation of one client's noise, as a part of the deviation that protects.

        A sum of the `least` clients holds all of it, also for a client that subtracts its own share.
        """
        shared = self.noise == "shared" or (self.noise == "seeded" and self.secure_sum)
        return 1 / math.sqrt(self.least - 1) if shared else 1.0
