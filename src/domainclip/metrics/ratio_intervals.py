"""Intervals of figures that are one sum over items divided by another: fractions, means, and means over some of
them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from domainclip.metrics.bootstrap import Resampling
from domainclip.metrics.metric import Interval


@dataclass(frozen=True)
class Ratio:
    """``Σ numerators / Σ denominators`` over the same items; NaN where the denominators sum to 0."""

    numerators: Float[np.ndarray, " items"]
    denominators: Float[np.ndarray, " items"]

    @classmethod
    def mean(cls, values: Sequence[float] | np.ndarray, among: Sequence[bool] | np.ndarray | None = None) -> Ratio:
        """The mean of the values, or of those ``among`` which are true."""
        numbers = np.asarray(values, dtype=np.float64)
        counted = np.ones_like(numbers) if among is None else np.asarray(among, dtype=np.float64)
        return cls(np.where(counted > 0, numbers, 0.0), counted)

    @property
    def value(self) -> float:
        below = self.denominators.sum()
        return float(self.numerators.sum() / below) if below else float("nan")


def ratio_intervals(
    ratios: Mapping[str, Ratio], groups: Sequence[Hashable | None] | None, resamples: int, seed: int = 0
) -> dict[str, Interval]:
    """95 % percentile bootstrap interval of each ratio; items of one group are drawn together. Nothing for 0 resamples.

    A ratio that is undefined in more than half of the resamples has none, nor has any where all items are one unit:
    every resample would say the same, which is not to be certain.
    """
    if not resamples or not ratios:
        return {}
    n_items = len(next(iter(ratios.values())).numerators)

    def statistics(counts: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for name, ratio in ratios.items():
            below = counts @ ratio.denominators
            found[name] = np.where(below > 0, counts @ ratio.numerators / np.where(below > 0, below, 1), np.nan)
        return found

    drawn = Resampling(n_items, groups, resamples, seed)
    if drawn.n_units < 2:
        return {}
    return {name: part for name, part in drawn.intervals(statistics).items() if part is not None}
