"""Models × data sets: a metric with its interval in every cell, and a verdict against the reference model.

The verdict is a test's, not the eye's: a random exchange of the two models' answers in every cell, corrected by Holm
for the number of cells, so that the chance of even one false "better" or "worse" in the whole matrix stays at 5 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from domainclip.errors import ConfigurationError
from domainclip.metrics.bootstrap import FEW_UNITS, Sums
from domainclip.metrics.metric import METRICS
from domainclip.metrics.significance import RESAMPLES, holm, metric_interval, paired_difference, resampled

ALPHA = 0.05
BETTER, SAME, WORSE = "better", "no difference", "worse"
REFERENCE, UNTESTED, FAILED = "reference", "not tested", "not evaluated"
VERDICTS = (BETTER, SAME, WORSE, REFERENCE, UNTESTED, FAILED)

_FIGURE, _CHANGE = ("value", "low", "high", "interval"), ("change", "change_low", "change_high", "differing_units")
_RESAMPLES_PER_TEST = 100
"""Holm multiplies the least p by the number of tests: this many exchanges for each keep it below 5 % all the same."""


@dataclass
class ModelOnSet:
    """What one model scored on one data set: ``sums`` of the compared metric and all flat ``metrics``; or, where it
    could not be evaluated, the ``reason``."""

    sums: Sums | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass
class SetScores:
    """A column of the matrix. ``scores`` by the model's name, all on the same rows; ``unit`` is "group" or "image",
    what is resampled; ``facts`` (rows, notes, …) go to the JSON as they are."""

    name: str
    path: str
    metric: str
    scores: dict[str, ModelOnSet]
    unit: str = "image"
    facts: Mapping[str, Any] = field(default_factory=dict)


def compare_matrix(
    models: Mapping[str, str], sets: Sequence[SetScores], reference: str, *, seed: int = 0
) -> dict[str, Any]:
    """The content of ``compare.json`` but for what the caller adds.

    Keys: ``reference``, ``models``, ``data``, ``cells`` (all models of the first set, then of the next), ``summary``
    (verdicts counted by model) and ``method``.

    Args:
        models: Name to path, in the order shown.
        sets: What the models scored on each data set.
        reference: The model that others are tested against.
        seed: Of resamples and exchanges.

    Returns:
        The content.

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
    for cell, adjusted in zip(
        tested := [c for c in cells if c["p_value"] is not None], holm([c["p_value"] for c in tested]), strict=True
    ):
        cell["p_adjusted"] = adjusted
        better = cell["change"] > 0 if METRICS[cell["metric"]].greater_is_better else cell["change"] < 0
        cell["verdict"] = SAME if adjusted >= ALPHA else BETTER if better else WORSE
    counted = {name: Counter(cell["verdict"] for cell in cells if cell["model"] == name) for name in models}
    return {
        "reference": reference,
        "models": [{"name": name, "path": path} for name, path in models.items()],
        "data": [_column(found) for found in sets],
        "cells": cells,
        "summary": [
            {"model": name, **{verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}}
            for name, counts in counted.items()
        ],
        "method": {
            "interval": "95 % percentile bootstrap over units (groups where the data have them, else images)",
            "test": "two-sided, a random exchange of the two models' answers within units",
            "correction": "Holm",
            "alpha": ALPHA,
            "tests": len(tested),
            "resamples": resamples,
            "seed": seed,
        },
    }


def _tested(found: SetScores, name: str, reference: str) -> bool:
    sums = [found.scores[key].sums for key in (reference, name)]
    return name != reference and all(part is not None and len(part.added) > 1 for part in sums)


def _cells(
    found: SetScores, models: Mapping[str, str], reference: str, resamples: int, seed: int
) -> list[dict[str, Any]]:
    sums = {name: part for name in models if (part := found.scores[name].sums) is not None}
    draws: dict[str, np.ndarray] = {}
    if sums:
        draws = dict(zip(sums, resampled(list(sums.values()), resamples, seed), strict=True))
    cells = []
    for name in models:
        cell: dict[str, Any] = {
            "model": name,
            "data": found.name,
            "metric": found.metric,
            "verdict": FAILED,
            "reason": found.scores[name].reason or None,
            **dict.fromkeys((*_FIGURE, *_CHANGE, "p_value", "p_adjusted")),
            "metrics": dict(found.scores[name].metrics),
        }
        if name in sums:
            cell["value"] = sums[name].value
            if interval := metric_interval(sums[name], draws[name]):
                cell |= {"low": interval.low, "high": interval.high, "interval": interval.method}
            cell |= _against(reference, name, sums, draws, seed)
        elif found.metric in found.scores[name].metrics:
            cell["value"] = found.scores[name].metrics[found.metric]
            reason = "the evaluator keeps no answers to single images, which a test would exchange"
            cell |= {"verdict": REFERENCE} if name == reference else {"verdict": UNTESTED, "reason": reason}
        cells.append(cell)
    return cells


def _against(
    reference: str, name: str, sums: Mapping[str, Sums], draws: Mapping[str, np.ndarray], seed: int
) -> dict[str, Any]:
    if name == reference:
        return {"verdict": REFERENCE}
    if reference not in sums:
        return {"verdict": UNTESTED, "reason": f"the reference {reference} could not be evaluated here"}
    found = paired_difference(sums[reference], sums[name], draws[reference], draws[name], seed)
    if found is None:
        change = sums[name].value - sums[reference].value
        return {"verdict": UNTESTED, "change": change, "reason": "all images are of one group: nothing to resample"}
    return {
        "change": found.change,
        "change_low": found.low,
        "change_high": found.high,
        "p_value": found.p_value,
        "differing_units": found.n_differing,
    }


def _column(found: SetScores) -> dict[str, Any]:
    sizes = [len(score.sums.added) for score in found.scores.values() if score.sums is not None]
    units = sizes[0] if sizes else None
    notes = list(found.facts.get("notes", ()))
    if units is not None and 1 < units < FEW_UNITS:  # a single one has no interval to speak of
        notes.append(f"Only {units} {found.unit}s to resample: the true uncertainty is larger than the intervals say")
    return {
        "name": found.name,
        "path": found.path,
        "metric": found.metric,
        "unit": found.unit,
        "n_units": units,
        **found.facts,
        "notes": notes,
    }
