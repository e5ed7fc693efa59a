"""Setting two evaluations of the same rows side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from domainclip.evaluation.evaluators import EvaluationResult
from domainclip.metrics.label_rankings import LABEL_METRICS, LabelRanking
from domainclip.metrics.metric import METRICS, Interval
from domainclip.metrics.significance import (
    RESAMPLES,
    PairedChange,
    metric_interval,
    paired_change,
    paired_difference,
    resampled,
    wilson_interval,
)
from domainclip.metrics.sums import has_groups, unit_sums

_SAME_ITEMS = {"classification": ("image_paths", "targets"), "retrieval": ("image_paths", "captions")}


@dataclass(frozen=True)
class GroupedChange(PairedChange):
    """A change over items of which several share a patient, a board or a specimen: ``low`` and ``high`` come from
    resamples of the ``n_units`` groups, ``p_value`` from the exchange test, as ``compare_matrix`` has them. All three
    are NaN with a single group, which says nothing of others."""

    n_units: int


@dataclass(frozen=True)
class RankedChange(PairedChange):
    """A change of a mean over rankings of images: interval and p value as of ``GroupedChange``. ``n_units``: groups,
    None where each image is a unit by itself."""

    n_units: int | None


def paired_changes(before: EvaluationResult, after: EvaluationResult, seed: int = 0) -> dict[str, PairedChange]:
    """The change of ``acc1``, the means over labels, ``i2t_R@1`` and ``t2i_R@1`` over the same items, where both have
    them; by whole groups where any has several images.

    Args:
        before: Of the first model.
        after: Of the second, on the same rows.
        seed: Of the resamples.

    Returns:
        Changes by metric.
    """
    changes: dict[str, PairedChange] = {}
    for part, names in (("classification", ("acc1",)), ("retrieval", ("i2t_R@1", "t2i_R@1"))):
        old, new = (result.details.get(part) for result in (before, after))
        if not (old and new and all(old[key] == new[key] for key in _SAME_ITEMS[part])):
            continue
        old = with_groups(old, new)
        for name in names:
            plain = paired_change(_right(name, old), _right(name, new))
            changes[name] = _by_group(plain, name, part, (old, new), seed) if has_groups(new) else plain
    old, new = (result.details.get("multi_label", {}) for result in (before, after))
    if old.get("label_scores") and all(old[key] == new.get(key) for key in ("image_paths", "label_truth")):
        changes |= {name: _of_rankings(name, old, new, seed) for name in LABEL_METRICS}
    return changes


def _of_rankings(name: str, old: Mapping[str, Any], new: Mapping[str, Any], seed: int) -> RankedChange:
    models = [LabelRanking.of_details(name, found) for found in (old, new)]
    draws = resampled(models, models[0].affordable(RESAMPLES), seed)
    difference = paired_difference(models[0], models[1], draws[0], draws[1], seed)
    low, high, p_value = (difference.low, difference.high, difference.p_value) if difference else (np.nan,) * 3
    change, n = models[1].value - models[0].value, len(new["image_paths"])
    return RankedChange(change, low, high, None, None, p_value, n, models[1].n_units if has_groups(new) else None)


def with_groups(found: Mapping[str, Any], other: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """A part of an evaluation's details that may come from an older file, which lacks the groups: the same rows have
    the same ones.

    Args:
        found: The part.
        other: The same part of another evaluation.

    Returns:
        The part with groups.
    """
    if "groups" in found or not other or found["image_paths"] != other["image_paths"]:
        return found
    return {**found, **{key: other[key] for key in ("groups", "hits") if key in other}}


def _right(name: str, found: Mapping[str, Any]) -> np.ndarray:
    if name == "acc1":
        return np.array(found["predictions"]) == np.array(found["targets"])
    return np.array(found[name.replace("R@1", "ranks")]) == 1


def _by_group(
    plain: PairedChange, name: str, part: str, found: Sequence[Mapping[str, Any]], seed: int
) -> GroupedChange:
    models = [unit_sums(name, {part: details}) for details in found]
    draws = resampled(models, seed=seed)
    difference = paired_difference(models[0], models[1], draws[0], draws[1], seed)
    low, high, p_value = (difference.low, difference.high, difference.p_value) if difference else (np.nan,) * 3
    return GroupedChange(
        plain.change, low, high, plain.gained, plain.lost, p_value, plain.n, n_units=len(models[0].added)
    )


def accuracy_interval(found: Mapping[str, Any], seed: int = 0) -> tuple[Interval | None, int]:
    """95 % interval of the accuracy, and of how many units it is, from ``details["classification"]``
    (``image_paths``, ``targets``, ``predictions``, ``labels``, ``groups``): Wilson's, or where some group has several
    images the bootstrap's by whole groups, which is that of ``compare_matrix``. None with a single group.

    Args:
        found: The part.
        seed: Of the resamples.

    Returns:
        The interval, and its units.
    """
    if has_groups(found):
        model = unit_sums("acc1", {"classification": found})
        return metric_interval(model, resampled([model], seed=seed)[0]), len(model.added)
    right = _right("acc1", found)
    return wilson_interval(int(right.sum()), len(right)), len(right)


def compared_metrics(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names worth a row in a table, in the order measured: no counts, nothing that has a section of its own.

    Args:
        before: Figures by name.
        after: Figures by name.

    Returns:
        The names.
    """
    names = dict.fromkeys([*after, *before])
    return [name for name in names if not METRICS[name].is_count and not METRICS[name].is_semantic]


def empty_recalls(names: Sequence[str], metrics: Mapping[str, Any]) -> dict[str, int]:
    """Those R@K whose K reaches the number of candidates, so that any model scores 1; with that number.

    Args:
        names: Metrics.
        metrics: Figures, the numbers of candidates among them.

    Returns:
        The number of candidates by metric.
    """
    found: dict[str, int] = {}
    for name in names:
        direction, _, k = name.partition("_R@")
        candidates = metrics.get("n_texts" if direction == "i2t" else "n_images")
        if direction in ("i2t", "t2i") and k.isdigit() and candidates is not None and int(k) >= candidates:
            found[name] = int(candidates)
    return found


def worsened(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Metrics that are worse after, by however little.

    Args:
        before: Figures by name.
        after: Figures by name.

    Returns:
        The names.
    """
    names = []
    for name in compared_metrics(before, after):
        old, new = before.get(name), after.get(name)
        if old is not None and new is not None and (new < old if METRICS[name].greater_is_better else new > old):
            names.append(name)
    return names


def confused_pairs(
    labels: Sequence[str], confusion: Sequence[Sequence[int]] | np.ndarray, most: int = 10
) -> list[tuple[str, str, int, int]]:
    """``(true class, predicted as, images, images of the true class)``, most frequent mistakes first.

    Args:
        labels: The classes.
        confusion: Counts, a row for each true class.
        most: At most.

    Returns:
        The pairs.
    """
    counts = np.asarray(confusion)
    totals = counts.sum(axis=1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    cells = (np.unravel_index(place, wrong.shape) for place in order)
    return [
        (labels[row], labels[column], int(wrong[row, column]), int(totals[row]))
        for row, column in cells
        if wrong[row, column] > 0
    ]
