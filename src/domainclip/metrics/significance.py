"""Does a change exceed what the choice of test images alone would produce?

Both answers take the images as drawn independently. Where many come from one patient or one board the true
uncertainty is larger than said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from domainclip.errors import ShapeError

# The 97.5 % point of the normal distribution, for two-sided 95 % intervals.
_Z = 1.959963984540054


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a fraction, each end in 0…1 (Wilson 1927).

    Unlike fraction ± 1.96 standard errors it stays inside 0…1 and has a width at fractions of 0 and 1. Raises
    ``ShapeError`` without trials.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ShapeError(f"A fraction needs 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    fraction = successes / trials
    centre = (fraction + _Z**2 / (2 * trials)) / (1 + _Z**2 / trials)
    half = _Z * sqrt(fraction * (1 - fraction) / trials + _Z**2 / (4 * trials**2)) / (1 + _Z**2 / trials)
    # The ends are exact there in theory, and an ulp away in floating point.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


@dataclass(frozen=True)
class PairedChange:
    """A difference of two fractions measured on the same items.

    ``change``, ``low`` and ``high`` (95 % interval) are in -1…1; ``gained`` items were wrong before and right
    after, ``lost`` the reverse; ``p_value`` is McNemar's exact two-sided one.
    """

    change: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float
    n: int

    @property
    def is_clear(self) -> bool:
        """Whether the data speak against "no change at all" at the 5 % level."""
        return self.p_value < 0.05


def paired_change(
    before: Sequence[bool] | np.ndarray,
    after: Sequence[bool] | np.ndarray,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedChange:
    """What changed between two models' answers (right or wrong) to the same items, in the same order.

    The interval is a percentile bootstrap over items: resampling them is a multinomial draw over gained, lost
    and unchanged, so it costs nothing however many there are. The p value is McNemar's exact test. Raises
    ``ShapeError`` when the two differ in length or are empty.
    """
    first, second = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ShapeError(
            f"Batch size mismatch: a paired comparison needs the same items twice, got {first.shape} and {second.shape}"
        )
    n = len(first)
    gained, lost = int((~first & second).sum()), int((first & ~second).sum())
    draws = np.random.default_rng(seed).multinomial(n, [gained / n, lost / n, (n - gained - lost) / n], resamples)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / n, [0.025, 0.975])
    return PairedChange((gained - lost) / n, float(low), float(high), gained, lost, _mcnemar(gained, lost), n)


def _mcnemar(gained: int, lost: int) -> float:
    """Two-sided p value of a fair coin falling this unevenly over the items that changed."""
    tosses = gained + lost
    tail, ways = 0, 1
    for k in range(min(gained, lost) + 1):
        tail += ways
        ways = ways * (tosses - k) // (k + 1)
    # Shifted so that thousands of tosses neither overflow nor underflow a float.
    return min(1.0, 2 * (tail << 64) // (1 << tosses) / 2**64)
