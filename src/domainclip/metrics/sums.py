"""Metrics written as functions of sums over images, so that a resample of the images costs one matrix product.

A fraction is one sum over another, a macro-average the mean of such fractions. What an image adds to the sums is known
after one evaluation; resampling images, or whole groups of them, then only weighs those rows anew (see
``paired_bootstrap``). Rank metrics such as the AUROC are no such functions and are not offered here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from domainclip.errors import ConfigurationError, DataError, ShapeError

Metric = Callable[[Float[np.ndarray, "... sums"]], Float[np.ndarray, "..."]]


@dataclass(frozen=True)
class UnitSums:
    """``sums[unit]`` is what a unit (an image, or all of a group) adds; ``metric`` turns the totals into 0…1."""

    sums: Float[np.ndarray, "units sums"]
    metric: Metric

    def __post_init__(self) -> None:
        if self.sums.ndim != 2 or 0 in self.sums.shape:
            raise ShapeError(f"Sums are a row per unit and a column per sum, at least one of each: {self.sums.shape}")

    @property
    def value(self) -> float:
        """The metric over all units, each once."""
        return float(self.metric(self.sums.sum(axis=0)))


CLASSIFICATION_METRICS = ("acc1", "mean_per_class_recall", "macro_f1")
RETRIEVAL_METRICS = ("mean_R@1", "i2t_R@1", "t2i_R@1")
METRICS = CLASSIFICATION_METRICS + RETRIEVAL_METRICS
"""Names that ``unit_sums`` takes; all lie in 0…1 and more is better."""


def check_metric(name: str) -> None:
    """Raises ``ConfigurationError`` for a metric that is no function of sums over images."""
    if name not in METRICS:
        raise ConfigurationError(
            f"Invalid metric {name!r} for a comparison: choose one of {', '.join(METRICS)}, or leave it out for "
            "acc1, and mean_R@1 where there are no classes"
        )


def unit_sums(name: str, details: Mapping[str, Any]) -> UnitSums:
    """The metric ``name`` from an evaluation's ``details``.

    The unit of an image is its group, or the image itself where it has none. A caption's own query counts for the
    units of its images, in equal parts where it has several. Raises ``ConfigurationError`` for an unknown name,
    ``DataError`` where the evaluation has no such part.
    """
    check_metric(name)
    part = "classification" if name in CLASSIFICATION_METRICS else "retrieval"
    found = details.get(part)
    if found is None:
        reasons = [note for note in details.get("notes", ()) if part in note]
        raise DataError(f"No {name} here. " + (". ".join(reasons) or f"The rows allow no {part}"))
    # Units without any image in this part (rows without a label) are not units of this metric.
    units = _numbered(_own_units(found))
    if part == "classification":
        return _classification(name, found, units)
    if "hits" not in found:  # an evaluation from before these were written
        raise DataError(f"{name} needs the hits: which image and which caption belong together")
    return _retrieval(name, found, units, np.array(found["hits"]))


def has_groups(found: Mapping[str, Any]) -> bool:
    """Whether some group of ``details["classification"]`` or ``details["retrieval"]`` has several images."""
    images = dict.fromkeys(zip(found["image_paths"], found.get("groups") or (), strict=False))
    return any(n > 1 for group, n in Counter(group for _, group in images).items() if group is not None)


def _own_units(found: Mapping[str, Any]) -> list[Hashable]:
    paths = found["image_paths"]
    groups = found.get("groups") or [None] * len(paths)
    return [("image", path) if group is None else ("group", group) for path, group in zip(paths, groups, strict=True)]


def _numbered(units: Iterable[Hashable]) -> Int[np.ndarray, " images"]:
    """Numbers in the order of first appearance: the same resamples then draw the same units, whoever asks."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(unit, len(numbers)) for unit in units])


def _classification(name: str, found: Mapping[str, Any], units: np.ndarray) -> UnitSums:
    n_units = int(units.max()) + 1
    index_of = {label: index for index, label in enumerate(found["labels"])}
    truth = np.array([index_of[label] for label in found["targets"]])
    predicted = np.array([index_of[label] for label in found["predictions"]])
    right = (truth == predicted).astype(float)
    if name == "acc1":
        return UnitSums(_added(units, n_units, [right, np.ones(len(right))]), _ratio)
    n = len(index_of)
    # Columns: right images of each class, images of each class, images predicted as each class.
    sums = np.zeros((n_units, 3 * n))
    np.add.at(sums, (units, truth), right)
    np.add.at(sums, (units, n + truth), 1)
    np.add.at(sums, (units, 2 * n + predicted), 1)
    if name == "mean_per_class_recall":
        return UnitSums(sums[:, : 2 * n], _mean_recall)
    return UnitSums(sums, _macro_f1)


def _retrieval(name: str, found: Mapping[str, Any], units: np.ndarray, hits: np.ndarray) -> UnitSums:
    n_units = int(units.max()) + 1
    i2t, t2i = (np.array(found[f"{direction}_ranks"]) == 1 for direction in ("i2t", "t2i"))
    images = _added(units, n_units, [i2t.astype(float), np.ones(len(i2t))])
    image, caption = hits.T
    part = 1 / np.bincount(caption, minlength=len(t2i))[caption]
    captions = _added(units[image], n_units, [t2i[caption] * part, part])
    if name == "i2t_R@1":
        return UnitSums(images, _ratio)
    if name == "t2i_R@1":
        return UnitSums(captions, _ratio)
    return UnitSums(np.hstack([images, captions]), _mean_of_two)


def _added(units: np.ndarray, n_units: int, columns: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([np.bincount(units, weights=column, minlength=n_units) for column in columns], axis=1)


def _ratio(totals: np.ndarray) -> np.ndarray:
    return totals[..., 0] / totals[..., 1]


def _mean_of_two(totals: np.ndarray) -> np.ndarray:
    return (_ratio(totals[..., :2]) + _ratio(totals[..., 2:])) / 2


def _mean_recall(totals: np.ndarray) -> np.ndarray:
    right, support = np.split(totals, 2, axis=-1)
    return _mean_where(support > 0, right, support)


def _macro_f1(totals: np.ndarray) -> np.ndarray:
    # F1 = 2·TP / (2·TP + FP + FN), and the two parts of the denominator are what there is and what was predicted.
    right, support, predicted = np.split(totals, 3, axis=-1)
    return _mean_where(support > 0, 2 * right, support + predicted)


def _mean_where(present: np.ndarray, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Mean of above / below over the classes that the resample has; the others do not count, as in the metric."""
    fractions = np.divide(above, below, out=np.zeros_like(above), where=present)
    return fractions.sum(axis=-1) / present.sum(axis=-1)
