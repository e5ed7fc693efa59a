"""The highest rate at which a service keeps its objectives: doubling, then halving the interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from domainclip.errors import ConfigurationError
from domainclip.service.load_test.outcomes import Trial

Measure = Callable[[float], Trial]
"""Makes one trial at a rate."""

LEAST_RATE = 0.05  # requests a second: a service that is too slow for these keeps no objective


@dataclass(frozen=True)
class Capacity:
    """What the search has found.

    Attributes:
        rate: The highest rate that keeps the objectives, in requests a second; None where none does.
        missed_rate: The lowest rate tried above it, which does not keep them; None where all do.
        passed: How many of the trials at ``rate`` kept them.
        trials: All of them, in order.
    """

    rate: float | None
    missed_rate: float | None
    passed: int
    trials: list[Trial]

    @property
    def at_rate(self) -> list[Trial]:
        """The trials at ``rate``."""
        return [trial for trial in self.trials if trial.rate == self.rate]

    def to_dict(self) -> dict[str, Any]:
        """Give plain values.

        Returns:
            What JSON can hold.
        """
        return {
            "rate": self.rate,
            "missed_rate": self.missed_rate,
            "passed": self.passed,
            "tried": len(self.at_rate),
            "trials": [trial.to_dict() for trial in self.trials],
        }


class CapacitySearch:
    """Looks for the highest rate.

    While rates double, one good trial is enough. In the interval each rate is decided by most of ``repeats`` trials,
    and the rate that is found has passed most of its own: a single hiccup, or a single lucky trial, decides nothing.

    Args:
        measure: Makes a trial.
        tolerance: The search ends when the interval is narrower than this fraction of its lower end.
        repeats: Trials of a rate, an odd number.
        highest: No higher rate is tried.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(self, measure: Measure, tolerance: float = 0.05, repeats: int = 3, highest: float = 100_000) -> None:
        if not 0 < tolerance < 1:
            raise ConfigurationError(f"The tolerance must be between 0 and 1, got {tolerance:g}")
        if repeats < 1 or repeats % 2 == 0:
            raise ConfigurationError(f"The repeats must be an odd number, got {repeats}")
        self._measure, self._tolerance, self._highest = measure, tolerance, highest
        self._majority = repeats // 2 + 1
        self._trials: list[Trial] = []

    def run(self, start: float) -> Capacity:
        """Search.

        Args:
            start: The first rate, in requests a second.

        Returns:
            What was found.

        Raises:
            ConfigurationError: The first rate is not positive.
        """
        if start <= 0:
            raise ConfigurationError(f"The first rate must be positive, got {start:g}")
        kept, missed = self._double(start)
        while kept is None and missed is not None and missed / 2 >= LEAST_RATE:
            half = missed / 2
            kept, missed = (half, missed) if self._keeps(half, self._majority) else (None, half)
        if kept is None:
            return Capacity(None, missed, 0, self._trials)
        while True:
            while missed is not None and missed > kept * (1 + self._tolerance):
                middle = (kept + missed) / 2
                kept, missed = (middle, missed) if self._keeps(middle, self._majority) else (kept, middle)
            if self._keeps(kept, self._majority):
                return Capacity(kept, missed, self._passed(kept), self._trials)
            # It was a lucky trial, of the doubling: the highest rate lies below.
            kept, missed = kept / 2, kept
            while not self._keeps(kept, self._majority):
                if kept / 2 < LEAST_RATE:
                    return Capacity(None, kept, 0, self._trials)
                kept, missed = kept / 2, kept

    def _double(self, rate: float) -> tuple[float | None, float | None]:
        """The last rate that keeps the objectives, and the first that does not."""
        kept = None
        while rate <= self._highest:
            if not self._keeps(rate, 1):
                return kept, rate
            kept, rate = rate, 2 * rate
        return kept, None

    def _keeps(self, rate: float, needed: int) -> bool:
        """Try until so many trials have passed, or most of them have failed. Earlier ones at this rate count."""
        while True:
            passed = self._passed(rate)
            failed = sum(trial.rate == rate for trial in self._trials) - passed
            if failed >= self._majority or passed >= needed:
                return failed < self._majority
            self._trials.append(self._measure(rate))

    def _passed(self, rate: float) -> int:
        return sum(trial.rate == rate and trial.is_met for trial in self._trials)
