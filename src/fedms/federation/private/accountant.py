"""What releases cost, by the package `dp-accounting`, which is imported when it is first used.

A release adds Gaussian noise of deviation z times its sensitivity; z is its multiplier. Releases of the
multipliers z_i compose to one of multiplier 1 / sqrt(sum 1 / z_i²), exactly and also where later ones depend
on earlier ones (Dong, Roth and Su, Gaussian Differential Privacy, arXiv 1905.02383).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from fedms.core.errors import ConfigError


def require_accountant() -> None:
    """Raise ConfigError where the package `dp-accounting` is not installed."""
    try:
        import dp_accounting  # noqa: F401
    except ModuleNotFoundError:
        need = "needs the package dp-accounting; install the extra: pip install 'fedms[privacy]'"
        raise ConfigError(f"privacy.unit: {need}") from None


def epsilon_of(multipliers: Sequence[float], delta: float) -> float:
    """The epsilon of releases with these multipliers together, at this delta."""
    from dp_accounting import get_epsilon_gaussian

    if not multipliers:
        return 0.0
    together = 1 / math.sqrt(sum(each**-2 for each in multipliers))
    return float(get_epsilon_gaussian(together, delta))


@lru_cache
def multiplier_for(epsilon: float, delta: float, releases: int) -> float:
    """The multiplier of each of this number of releases that together spend the budget."""
    from dp_accounting import get_sigma_gaussian

    return float(get_sigma_gaussian(epsilon, delta)) * math.sqrt(releases)
