"""Does a change exceed what the choice of test images alone would produce?

A unit is what was drawn independently: an image, or a patient, board or specimen with all its images. Answers of two
models to single images are compared by McNemar's test, any metric of any units by the paired bootstrap (every model
sees the same resamples, so that what is hard for all of them does not blur the difference) and by a random exchange of
the models' answers; many tests at once by Holm's correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest

from domainclip.errors import ShapeError
from domainclip.metrics.bootstrap import Resampling, percentile_interval
from domainclip.metrics.metric import Interval

RESAMPLES = 10_000
"""More than an interval needs: with many tests, Holm's correction asks for p values of 1 in 1,000 and less."""
_ROUNDING = 1e-12
_BLOCK = 4_000_000  # choices held at once, 32 MB


class UnitFigure(Protocol):
    """A figure of one model that can be resampled by units, and whose answers another model's can be exchanged for:
    ``Sums`` of one figure, or a ``LabelRanking``. ``value`` is that of all units, each once."""

    @property
    def n_units(self) -> int: ...

    @property
    def value(self) -> float: ...

    def affordable(self, wanted: int, /) -> int:
        """As many resamples and exchanges as take seconds.

        Args:
            wanted: At most.

        Returns:
            How many.
        """
        ...

    def drawn(self, counts: Float[np.ndarray, "resamples units"], /) -> Float[np.ndarray, " resamples"]:
        """The figure in each resample.

        Args:
            counts: How often each unit is in each resample.

        Returns:
            Its values.
        """
        ...

    def differing(self, other: Self, /) -> Bool[np.ndarray, " units"]:
        """The units to which the two models' answers differ.

        Args:
            other: Of the same units.

        Returns:
            Whether each is one.
        """
        ...

    def exchanged(
        self, other: Self, differing: Bool[np.ndarray, " units"], swapped: Bool[np.ndarray, "exchanges differing"], /
    ) -> tuple[Float[np.ndarray, " exchanges"], Float[np.ndarray, " exchanges"]]:
        """Both models' figures after an exchange of their answers.

        Args:
            other: Of the same units.
            differing: Those to which the answers differ, as ``differing`` gives them.
            swapped: Whether each of these is exchanged.

        Returns:
            This model's, and the other's.
        """
        ...


def wilson_interval(successes: int, trials: int) -> Interval:
    """The 95 % interval of a fraction (Wilson 1927).

    Unlike fraction ± 1.96 standard errors it stays inside 0…1 and has a width at fractions of 0 and 1.

    Args:
        successes: How many there were.
        trials: Of how many.

    Returns:
        The interval, each end in 0…1.

    Raises:
        ShapeError: There are no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ShapeError(f"A fraction needs 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    found = binomtest(successes, trials).proportion_ci(method="wilson")
    return Interval(float(found.low), float(found.high), "wilson", trials)


@dataclass(frozen=True)
class PairedChange:
    """A difference of two fractions measured on the same items.

    ``change``, ``low`` and ``high`` (95 % interval) are in -1…1; ``gained`` items were wrong before and right
    after, ``lost`` the reverse, None where no single answer is right or wrong; ``p_value`` is McNemar's exact two-sided
    one.
    """

    change: float
    low: float
    high: float
    gained: int | None
    lost: int | None
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

    Resampling items is a multinomial draw over gained, lost and unchanged, so it costs nothing however many there are.

    Args:
        before: Whether each answer of the first model is right.
        after: The same of the second.
        resamples: Resamples behind the percentile interval.
        seed: What they follow from.

    Returns:
        The change, with McNemar's exact test: of a fair coin over the items that changed.

    Raises:
        ShapeError: The two differ in length or are empty.
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
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return PairedChange((gained - lost) / n, float(low), float(high), gained, lost, p_value, n)


@dataclass(frozen=True)
class Difference:
    """A model's metric minus the reference's: ``change`` with its 95 % percentile interval, in -1…1, and ``p_value``
    of the exchange test.

    ``n_differing``: units to which the two models' answers differ.
    """

    change: float
    low: float
    high: float
    p_value: float
    n_differing: int


def resampled(
    models: Sequence[UnitFigure], resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "models resamples"]:
    """Each model's metric on the same resamples of the units, drawn with replacement.

    Args:
        models: On the same units.
        resamples: How many.
        seed: What the draws follow from.

    Returns:
        The metric of each model in each resample.

    Raises:
        ShapeError: The models were not evaluated on the same number of units.
    """
    sizes = {model.n_units for model in models}
    if len(sizes) != 1:
        raise ShapeError(f"Batch size mismatch: a paired comparison needs the same units for all, got {sorted(sizes)}")

    def metrics(counts: np.ndarray) -> dict[int, np.ndarray]:
        return {index: model.drawn(counts) for index, model in enumerate(models)}

    return np.stack(list(Resampling(sizes.pop(), None, resamples, seed).distributions(metrics).values()))


def metric_interval(model: UnitFigure, draws: Float[np.ndarray, " resamples"]) -> Interval | None:
    """95 % percentile interval (Efron 1979) of a model's metric.

    Where all resamples agree on 0 or 1 the percentile interval has no width, however few units there are: Wilson's,
    a unit a trial, stands in.

    Args:
        model: The model.
        draws: Its metric in each resample.

    Returns:
        The interval; None with a single unit, which says nothing of others.
    """
    units = model.n_units
    if units < 2:
        return None
    value = model.value
    if np.ptp(draws) < _ROUNDING and min(value, 1 - value) < _ROUNDING:
        return wilson_interval(round(value) * units, units)
    return percentile_interval(draws, n_units=units)


def paired_difference(
    reference: UnitFigure,
    model: UnitFigure,
    reference_draws: Float[np.ndarray, " resamples"],
    model_draws: Float[np.ndarray, " resamples"],
    seed: int = 0,
) -> Difference | None:
    """How a model differs from the reference.

    Args:
        reference: The model to be tested against.
        model: On the same units.
        reference_draws: The reference's metric in each resample.
        model_draws: The model's in the same ones.
        seed: What the exchanges follow from.

    Returns:
        The change with its interval from the resamples, and p from as many exchanges; None with a single unit.
    """
    if model.n_units < 2:
        return None
    differences = model_draws - reference_draws
    low, high = np.nanquantile(differences, [0.025, 0.975])  # NaN: a resample without any label's two sides
    p_value = exchange_p_value(reference, model, len(differences), seed)
    n_differing = int(model.differing(reference).sum())
    return Difference(model.value - reference.value, float(low), float(high), p_value, n_differing)


def exchange_p_value(reference: UnitFigure, model: UnitFigure, exchanges: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p of a random exchange (Fisher 1935; of language models' scores Noreen 1989, Yeh 2000):

        p = (1 + #{|d*| ≥ |d|}) / (1 + exchanges)

    d is the difference measured, d* that after a coin has decided, unit by unit, which model gave which answers: if
    neither is better, the names say nothing. With few units a bootstrap test calls equal models different two or three
    times too often; this one keeps its level. Where all ways to exchange are no more than ``exchanges`` each is taken
    once, and p is exact.

    Args:
        reference: The model to be tested against.
        model: On the same units.
        exchanges: How many are drawn.
        seed: What the draws follow from.

    Returns:
        The p value.
    """
    # A unit that both models answer alike is the same either way: only the others are worth a coin.
    differing = model.differing(reference)
    n = int(differing.sum())
    least = abs(model.value - reference.value) - _ROUNDING

    def reached(swapped: np.ndarray) -> int:
        found, other = model.exchanged(reference, differing, swapped)
        return int((np.abs(found - other) >= least).sum())

    if 2**n <= exchanges:
        return reached((np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1) / 2**n
    rng = np.random.default_rng(seed)
    at_once = max(1, _BLOCK // n)
    sizes = [min(at_once, exchanges - start) for start in range(0, exchanges, at_once)]
    return (1 + sum(reached(rng.random((size, n)) < 0.5) for size in sizes)) / (1 + exchanges)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values: below α, the test is significant with α the chance of any false one (Holm 1979). The smallest
    of m is multiplied by m, the next by m − 1, …, and none may fall below the one before.

    Args:
        p_values: Those of all tests.

    Returns:
        The adjusted ones, in the order given.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
