"""Models × data sets: a metric with its interval in every cell, and a verdict against the reference model.

The verdict is a test's, not the eye's: a random exchange of the two models' answers in every cell, corrected by Holm
for the number of cells, so that the chance of even one false "better" or "worse" in the whole matrix stays at 5 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import ConfigDict

from domainclip.errors import ConfigurationError
from domainclip.metrics.bootstrap import FEW_UNITS
from domainclip.metrics.metric import METRICS
from domainclip.metrics.significance import (
    RESAMPLES,
    UnitFigure,
    holm,
    metric_interval,
    paired_difference,
    resampled,
)
from domainclip.words import counted

ALPHA = 0.05
Verdict = Literal["better", "no difference", "worse", "reference", "not tested", "not evaluated"]
Unit = Literal["group", "image"]
BETTER: Verdict = "better"
SAME: Verdict = "no difference"
WORSE: Verdict = "worse"
REFERENCE: Verdict = "reference"
UNTESTED: Verdict = "not tested"
FAILED: Verdict = "not evaluated"
VERDICTS = (BETTER, SAME, WORSE, REFERENCE, UNTESTED, FAILED)

_STRICT = ConfigDict(extra="forbid")
_RESAMPLES_PER_TEST = 100
"""Holm multiplies the least p by the number of tests: this many exchanges for each keep it below 5 % all the same."""


@dataclass
class ModelOnSet:
    """What one model scored on one data set: ``sums`` of the compared metric and all flat ``metrics``; or, where it
    could not be evaluated, the ``reason``."""

    sums: UnitFigure | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass
class SetScores:
    """A column of the matrix. ``scores`` by the model's name, all on the same rows; ``unit`` is what is resampled."""

    name: str
    path: str
    metric: str
    scores: dict[str, ModelOnSet]
    unit: Unit = "image"
    n_rows: int | None = None
    n_images: int | None = None
    n_skipped: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ComparedModel:
    """A model by its name."""

    __pydantic_config__ = _STRICT

    name: str
    path: str


@dataclass(frozen=True)
class ComparedData:
    """A data set: the ``metric`` it was compared by, and the units (images or whole groups) that were resampled; None
    where no model could be evaluated."""

    __pydantic_config__ = _STRICT

    name: str
    path: str
    metric: str
    unit: Unit
    n_units: int | None
    n_rows: int | None = None
    n_images: int | None = None
    n_skipped: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class Cell:
    """One model on one data set. ``change`` is against the reference; ``p_adjusted`` is corrected for all tests."""

    __pydantic_config__ = _STRICT

    model: str
    data: str
    metric: str
    verdict: Verdict = FAILED
    reason: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    interval: str | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    differing_units: int | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    metrics: dict[str, int | float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """How the figures came about."""

    __pydantic_config__ = _STRICT

    tests: int
    resamples: int
    seed: int
    interval: str = "95 % percentile bootstrap over units (groups where the data have them, else images)"
    test: str = "two-sided, a random exchange of the two models' answers within units"
    correction: str = "Holm"
    alpha: float = ALPHA


@dataclass(frozen=True)
class Matrix:
    """The whole comparison.

    Args:
        reference: The model that the others are tested against.
        models: In the order shown.
        data: The data sets, in the order shown.
        cells: All models of the first data set, then of the next.
        summary: For each ``model`` a count under each verdict that occurs.
        method: How the figures came about.
    """

    reference: str
    models: list[ComparedModel]
    data: list[ComparedData]
    cells: list[Cell]
    summary: list[dict[str, str | int]]
    method: Method


def compare_matrix(models: Mapping[str, str], sets: Sequence[SetScores], reference: str, *, seed: int = 0) -> Matrix:
    """What ``compare.json`` holds but for what the caller adds.

    Args:
        models: Name to path, in the order shown.
        sets: What the models scored on each data set.
        reference: The model that others are tested against.
        seed: Of resamples and exchanges.

    Returns:
        The matrix.

    Raises:
        ConfigurationError: The reference is no model.
    """
    if reference not in models:
        raise ConfigurationError(
            f"The reference {reference!r} is none of the models compared: choose one of {', '.join(models)}"
        )
    tests = sum(_tested(found, name, reference) for found in sets for name in models)
    resamples = max(RESAMPLES, _RESAMPLES_PER_TEST * tests)
    cells = [cell for found in sets for cell in _cells(found, models, reference, resamples, seed)]
    tested = [(cell, cell.p_value) for cell in cells if cell.p_value is not None]
    for (cell, _), adjusted in zip(tested, holm([p_value for _, p_value in tested]), strict=True):
        cell.p_adjusted, change = adjusted, cell.change or 0.0
        better = change > 0 if METRICS[cell.metric].greater_is_better else change < 0
        cell.verdict = SAME if adjusted >= ALPHA else BETTER if better else WORSE
    counted = {name: Counter(cell.verdict for cell in cells if cell.model == name) for name in models}
    return Matrix(
        reference,
        [ComparedModel(name, path) for name, path in models.items()],
        [_column(found, resamples) for found in sets],
        cells,
        [
            {"model": name, **{verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}}
            for name, counts in counted.items()
        ],
        Method(len(tested), resamples, seed),
    )


def _tested(found: SetScores, name: str, reference: str) -> bool:
    sums = [found.scores[key].sums for key in (reference, name)]
    return name != reference and all(part is not None and part.n_units > 1 for part in sums)


def _cells(found: SetScores, models: Mapping[str, str], reference: str, resamples: int, seed: int) -> list[Cell]:
    sums = {name: part for name in models if (part := found.scores[name].sums) is not None}
    draws: dict[str, np.ndarray] = {}
    if sums:
        most = min(part.affordable(resamples) for part in sums.values())
        draws = dict(zip(sums, resampled(list(sums.values()), most, seed), strict=True))
    cells = []
    for name in models:
        score = found.scores[name]
        cell = Cell(name, found.name, found.metric, reason=score.reason or None, metrics=dict(score.metrics))
        if name in sums:
            cell.value = sums[name].value
            if interval := metric_interval(sums[name], draws[name]):
                cell.low, cell.high, cell.interval = interval.low, interval.high, interval.method
            _against(reference, cell, sums, draws, seed)
        elif found.metric in score.metrics:
            cell.value = score.metrics[found.metric]
            cell.verdict = REFERENCE if name == reference else UNTESTED
            if cell.verdict == UNTESTED:
                cell.reason = "the evaluator keeps no answers to single images, which a test would exchange"
        cells.append(cell)
    return cells


def _against(
    reference: str, cell: Cell, sums: Mapping[str, UnitFigure], draws: Mapping[str, np.ndarray], seed: int
) -> None:
    """Set a cell's change against the reference and its p value, or why there is no test."""
    name = cell.model
    if name == reference:
        cell.verdict = REFERENCE
    elif reference not in sums:
        cell.verdict, cell.reason = UNTESTED, f"the reference {reference} could not be evaluated here"
    elif found := paired_difference(sums[reference], sums[name], draws[reference], draws[name], seed):
        cell.change, cell.change_low, cell.change_high = found.change, found.low, found.high
        cell.p_value, cell.differing_units = found.p_value, found.n_differing
    else:
        cell.verdict, cell.reason = UNTESTED, "all images are of one group: nothing to resample"
        cell.change = sums[name].value - sums[reference].value


def _column(found: SetScores, resamples: int) -> ComparedData:
    sizes = [score.sums.n_units for score in found.scores.values() if score.sums is not None]
    units = sizes[0] if sizes else None
    notes = list(found.notes)
    made = min((score.sums.affordable(resamples) for score in found.scores.values() if score.sums), default=resamples)
    if made < resamples:
        notes.append(f"Intervals and tests come from {made:,} resamples here, since each ranks all images anew")
    if units is not None and 1 < units < FEW_UNITS:  # a single one has no interval to speak of
        notes.append(
            f"Only {counted(units, found.unit)} to resample: the true uncertainty is larger than the intervals say"
        )
    return ComparedData(
        found.name,
        found.path,
        found.metric,
        found.unit,
        units,
        found.n_rows,
        found.n_images,
        found.n_skipped,
        notes,
    )
