"""The section `compare` of a config: the rows, seeds and grid of `fedms compare`."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from fedms.config.sections import Section
from fedms.core.formatting import excerpt
from fedms.core.paths import NAME_RULE, alike, is_name

LONGEST_ROW = 64
"""Upper bound on the bytes of a row's name, which becomes a part of a folder's name."""
LARGEST_GRID = 10_000
"""Upper bound on the combinations of `compare.tune`."""


class CompareConfig(Section):
    """The rows of `fedms compare`. A single run does not read this section."""

    methods: tuple[str, ...] | None = None
    """Methods to compare, by their names in `fedms methods`; default: all methods."""
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Further rows: names with the keys that differ, as in `{"rank 4": {method: fedms, lora.rank: 4}}`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; every row runs once with each seed."""
    baseline: str = "fedms"
    """The row with which the others are compared; the first row if this one is not among the rows."""
    tune: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Grid of keys and candidates, as in `training.learning_rate: [3e-4, 1e-3]`. Each row gets its best
    combination on the first seed."""
    criterion: Literal["accuracy_local", "accuracy_global", "nll_local", "nll_global"] | None = None
    """The figure on validation data that selects the combination: an accuracy, or with `task: text` a loss;
    default: the one on own data."""

    @model_validator(mode="after")
    def _check(self) -> CompareConfig:
        for name in self.variants:
            if not is_name(name, LONGEST_ROW):
                raise ValueError(
                    f"variants: {excerpt(repr(name))} cannot name a row: "
                    f"no {NAME_RULE}, at most {LONGEST_ROW} bytes"
                )
        if same := alike(self.variants):
            one, other = map(excerpt, same)
            raise ValueError(
                f"variants: {one} and {other} differ in nothing that every file system tells apart"
            )
        for key, values in {
            "methods": self.methods or (),
            "seeds": self.seeds,
            **{f"tune.{k}": v for k, v in self.tune.items()},
        }.items():
            if twice := [value for place, value in enumerate(values) if value in values[:place]]:
                raise ValueError(f"{key}: {excerpt(str(twice[0]))} comes twice")
            if not values and key != "methods":
                raise ValueError(f"{key}: must name at least one")
        if math.prod(map(len, self.tune.values())) > LARGEST_GRID:
            raise ValueError(f"tune: has more than {LARGEST_GRID:,} combinations")
        if negative := [seed for seed in self.seeds if seed < 0]:
            raise ValueError(f"seeds: must not be negative, as {negative[0]} is")
        if self.methods is not None and not self.methods and not self.variants:
            raise ValueError("methods: must name at least one where there are no variants")
        return self
