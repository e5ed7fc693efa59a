"""Intervals and tests for several models evaluated on the same units: the paired bootstrap, a random exchange of the
models' answers, and Holm's correction.

A unit is what was drawn independently: an image, or a patient, board or specimen with all its images. Every model
sees the same resamples, so that what is hard for all of them does not blur the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from domainclip.errors import ShapeError
from domainclip.metrics.bootstrap import Resampling, percentile_interval
from domainclip.metrics.significance import wilson_interval
from domainclip.metrics.sums import UnitSums

RESAMPLES = 10_000
"""More than an interval needs: with many tests, Holm's correction asks for p values of 1 in 1,000 and less."""
_ROUNDING = 1e-12
_BLOCK = 4_000_000  # choices held at once, 32 MB


@dataclass(frozen=True)
class MetricInterval:
    """95 % interval in 0…1; ``method`` is "bootstrap", or "wilson" where every unit says 0 or every unit says 1."""

    low: float
    high: float
    method: str


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
    models: Sequence[UnitSums], resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "models resamples"]:
    """Each model's metric on the same resamples of the units, drawn with replacement.

    Raises ``ShapeError`` where the models were not evaluated on the same number of units.
    """
    sizes = {len(model.sums) for model in models}
    if len(sizes) != 1:
        raise ShapeError(f"Batch size mismatch: a paired comparison needs the same units for all, got {sorted(sizes)}")
    joined = np.hstack([model.sums for model in models])
    edges = np.cumsum([model.sums.shape[1] for model in models])[:-1]

    def metrics(counts: np.ndarray) -> dict[str, np.ndarray]:
        totals = np.split(counts @ joined, edges, axis=1)
        return {str(index): model.metric(totals[index]) for index, model in enumerate(models)}

    return np.stack(list(Resampling(len(joined), None, resamples, seed).distributions(metrics).values()))


def metric_interval(model: UnitSums, draws: Float[np.ndarray, " resamples"]) -> MetricInterval | None:
    """95 % percentile interval (Efron 1979) of a model's metric; None with a single unit, which says nothing of others.

    Where all resamples agree on 0 or 1 the percentile interval has no width, however few units there are: Wilson's,
    a unit a trial, stands in.
    """
    units = len(model.sums)
    if units < 2:
        return None
    value = model.value
    if np.ptp(draws) < _ROUNDING and min(value, 1 - value) < _ROUNDING:
        low, high = wilson_interval(round(value) * units, units)
        return MetricInterval(low, high, "wilson")
    found = percentile_interval(draws)
    return MetricInterval(found.low, found.high, "bootstrap") if found else None


def paired_difference(
    reference: UnitSums,
    model: UnitSums,
    reference_draws: Float[np.ndarray, " resamples"],
    model_draws: Float[np.ndarray, " resamples"],
    seed: int = 0,
) -> Difference | None:
    """The change with its interval from the resamples, and p from as many exchanges; None with a single unit."""
    if len(model.sums) < 2:
        return None
    differences = model_draws - reference_draws
    low, high = np.quantile(differences, [0.025, 0.975])
    p_value = exchange_p_value(reference, model, len(differences), seed)
    n_differing = int(_differs(reference, model).sum())
    return Difference(model.value - reference.value, float(low), float(high), p_value, n_differing)


def exchange_p_value(reference: UnitSums, model: UnitSums, exchanges: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p of a random exchange (Fisher 1935; of language models' scores Noreen 1989, Yeh 2000):

        p = (1 + #{|d*| ≥ |d|}) / (1 + exchanges)

    d is the difference measured, d* that after a coin has decided, unit by unit, which model gave which answers: if
    neither is better, the names say nothing. With few units a bootstrap test calls equal models different two or three
    times too often; this one keeps its level. Where all ways to exchange are no more than ``exchanges`` each is taken
    once, and p is exact.
    """
    # A unit that both models answer alike is the same either way: only the others are worth a coin.
    moved = (model.sums - reference.sums)[_differs(reference, model)]
    n = len(moved)
    least = abs(model.value - reference.value) - _ROUNDING
    totals, other_totals = model.sums.sum(axis=0), reference.sums.sum(axis=0)

    def reached(swapped: np.ndarray) -> int:
        passed = swapped.astype(np.float64) @ moved
        found = model.metric(totals - passed) - reference.metric(other_totals + passed)
        return int((np.abs(found) >= least).sum())

    if 2**n <= exchanges:
        return reached((np.arange(2**n)[:, None] >> np.arange(n)) & 1) / 2**n
    rng = np.random.default_rng(seed)
    at_once = max(1, _BLOCK // n)
    sizes = [min(at_once, exchanges - start) for start in range(0, exchanges, at_once)]
    return (1 + sum(reached(rng.random((size, n)) < 0.5) for size in sizes)) / (1 + exchanges)


def _differs(reference: UnitSums, model: UnitSums) -> Bool[np.ndarray, " units"]:
    return (np.abs(model.sums - reference.sums) > _ROUNDING).any(axis=1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in the order given: below α, the test is significant with α the chance of any false one
    (Holm 1979). The smallest of m is multiplied by m, the next by m − 1, …, and none may fall below the one before."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
