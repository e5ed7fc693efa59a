"""How closely the projections should follow their rows, chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from domainclip.config.probe_settings import ProbeSettings
from domainclip.training.probe.fit import Effort, ProjectionFit
from domainclip.training.probe.held_out import HeldOut, calibrated_surprise
from domainclip.training.probe.rows import ProbeRows
from domainclip.waiting import Progress

FOLDS = 3
EFFORTS = (
    Effort(100, 3e-4),
    Effort(300, 3e-4),
    Effort(300, 1e-3),
    Effort(900, 1e-3),
)
"""From the loosest to the closest fit. Each is best on some set (docs/log.md)."""
USUAL = EFFORTS[1]
"""Where folds say nothing."""
FEWEST_ROWS = 50
"""Below so many the answers of all folds together are off by seven points and more by chance."""
UNEQUAL = 3.0
"""From this many rows of the largest class to one of the smallest on, weights of classes are tried."""


@dataclass(frozen=True)
class Choice:
    """An effort, and how it did on rows that each fold held out.

    Attributes:
        effort: The one chosen.
        surprise: −log of the probability of the right answer, calibrated, in nats a row; None where nothing was tried.
        accuracy: The fraction of right answers; None where nothing was tried.
        folds: How many.
    """

    effort: Effort
    surprise: float | None = None
    accuracy: float | None = None
    folds: int = 0


@dataclass(frozen=True)
class _Tried:
    effort: Effort
    surprise: float
    accuracy: float
    recall: float


def candidates(settings: ProbeSettings) -> list[Effort]:
    """The efforts that the recipe leaves open.

    Args:
        settings: Steps and rate, where the user has set them.

    Returns:
        At least one.
    """
    open_ones = [
        Effort(
            settings.probe_steps or effort.steps,
            settings.probe_learning_rate or effort.learning_rate,
            bool(settings.class_balance),
        )
        for effort in EFFORTS
    ]
    return list(dict.fromkeys(open_ones))


def choose(
    fit: ProjectionFit, rows: ProbeRows, settings: ProbeSettings, seed: int, check: Callable[[], None] | None = None
) -> Choice:
    """Choose by grouped, stratified cross-validation: from the loosest fit on, until a closer one is more surprised by
    rows that were held out.

    Args:
        fit: Fits the projections.
        rows: All rows that may be learned from.
        settings: Of the recipe.
        seed: Of the folds.
        check: Called at every step of a fit: it may raise, to stop.

    Returns:
        What was chosen; the projections are left as the last fit made them.
    """
    open_ones = candidates(settings)
    unequal = settings.class_balance is None and fit.classes is not None and _imbalance(rows.classes) >= UNEQUAL
    if len(open_ones) == 1 and not unequal:
        return Choice(open_ones[0])
    folds = rows.folds(FOLDS, seed) if len(rows) >= FEWEST_ROWS else []
    if not folds:
        return Choice(USUAL if USUAL in open_ones else open_ones[0])

    def tried(effort: Effort) -> _Tried:
        parts = cross_validated(fit, folds, effort, check)
        correct = torch.cat([part.correct for part in parts]).double()
        surprise = float(calibrated_surprise(parts).mean())
        return _Tried(effort, surprise, float(correct.mean()), _mean_recall(parts) if unequal else 0.0)

    best = tried(open_ones[0])
    for effort in open_ones[1:]:
        closer = tried(effort)
        if closer.surprise >= best.surprise:  # what fits too closely already does not gain by fitting more closely
            break
        best = closer
    if unequal:
        balanced = tried(replace(best.effort, balanced=True))
        if balanced.recall > best.recall and balanced.accuracy >= best.accuracy:
            best = balanced
    return Choice(best.effort, best.surprise, best.accuracy, len(folds))


def cross_validated(
    fit: ProjectionFit,
    folds: Sequence[tuple[Tensor, Tensor]],
    effort: Effort,
    check: Callable[[], None] | None = None,
) -> list[HeldOut]:
    """What fits to all folds but one say of that one.

    Args:
        fit: Fits the projections, which are left as the last fit made them.
        folds: See ``ProbeRows.folds``.
        effort: Of each fit.
        check: Called at every step: it may raise, to stop.

    Returns:
        One part for each fold.
    """
    parts: list[HeldOut] = []
    with Progress(len(folds), f"Trying {effort.steps} steps in folds") as progress:
        for fitted, held in folds:
            fit(fitted, effort, check=check)
            parts.append(fit.held_out(held))
            progress.at(len(parts))
    return parts


def _imbalance(classes: Tensor) -> float:
    sizes = torch.bincount(classes[classes >= 0])
    sizes = sizes[sizes > 0]
    return float(sizes.max() / sizes.min()) if len(sizes) else 1.0


def _mean_recall(parts: Sequence[HeldOut]) -> float:
    correct = torch.cat([part.correct for part in parts]).double()
    classes = torch.cat([part.right.long().argmax(1) for part in parts])
    return float(torch.stack([correct[classes == label].mean() for label in classes.unique()]).mean())
