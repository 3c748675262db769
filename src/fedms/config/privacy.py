"""The section `privacy` of a config: what the server may learn of a single client."""

from __future__ import annotations

from pydantic import Field

from fedms.config.sections import Section


class PrivacyConfig(Section):
    """What the server may learn of a single client."""

    secure_sum: bool = False
    """Whether averages, statistics, likelihoods, losses and hits reach the server as sums over clients alone
    (docs/secure-sums.md). Needs the extra `fedms[privacy]`."""
    least: int = Field(3, ge=3)
    """Fewest clients in a secure sum. A client takes part in no smaller one."""
