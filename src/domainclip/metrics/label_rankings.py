"""Images with several labels: means over labels of how well each ranks its images, resampled and compared.

A mean over rankings is no function of sums over images, so that it has its own resamples (``threshold_curves``) and its
own exchange of two models' answers. What is exchanged there are ranks within a label, not scores: two models' scores
have no common scale (Venkatraman and Begg 1996).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from domainclip.errors import ShapeError
from domainclip.metrics.bootstrap import affordable_resamples, numbered, of_those_left
from domainclip.metrics.threshold_curves import ThresholdPanel

LABEL_METRICS = {"mAP": "ap", "mean_auroc": "auroc"}
"""The means, and the figure of one label that each is the mean of."""
_EXCHANGE_COST = 10  # of a cell: sorted anew for each exchange and both models
_BLOCK = 1_000_000  # images of exchanges held at once


def label_panel(
    scores: Float[np.ndarray, "images labels"],
    truth: Bool[np.ndarray, "images labels"],
    labels: Sequence[str],
    names: Iterable[str] = LABEL_METRICS,
) -> ThresholdPanel:
    """The figures of all labels that some images have and others lack, and their means.

    Args:
        scores: Higher is more likely to have the label.
        truth: Whether the image has it.
        labels: The labels' names.
        names: The means that are wanted.

    Returns:
        What has values, and resamples of them.
    """
    questions = {labels[k]: (scores[:, k], truth[:, k]) for k in known_labels_of(truth)}
    means = {LABEL_METRICS[name]: name for name in names}
    return ThresholdPanel(questions, {figure: figure.upper() for figure in means}, means)


def known_labels_of(truth: Bool[np.ndarray, "images labels"]) -> list[int]:
    """The labels that some images have and others lack.

    Args:
        truth: Whether each image has each label.

    Returns:
        Their numbers.
    """
    return [k for k, count in enumerate(truth.sum(axis=0)) if 0 < count < len(truth)]


@dataclass(frozen=True)
class LabelRanking:
    """One mean of one model, which significance tests resample and exchange by units.

    Args:
        name: One of ``LABEL_METRICS``.
        scores: Of each image and label.
        truth: Whether the image has the label.
        groups: Each image's group; None for an image that is a unit by itself.
    """

    name: str
    scores: Float[np.ndarray, "images labels"]
    truth: Bool[np.ndarray, "images labels"]
    groups: Sequence[Hashable | None]

    @classmethod
    def of_details(cls, name: str, details: Mapping[str, Any]) -> LabelRanking:
        """From what an evaluation keeps of single images.

        Args:
            name: One of ``LABEL_METRICS``.
            details: ``label_scores``, ``label_truth`` and ``groups``.

        Returns:
            The ranking.
        """
        truth = np.array(details["label_truth"], dtype=bool)
        return cls(name, np.array(details["label_scores"], dtype=np.float64), truth, details["groups"])

    @cached_property
    def _units(self) -> Int[np.ndarray, " images"]:
        return numbered((row, None) if group is None else group for row, group in enumerate(self.groups))

    @cached_property
    def _panel(self) -> ThresholdPanel:
        return label_panel(self.scores, self.truth, [str(k) for k in range(self.truth.shape[1])], [self.name])

    @cached_property
    def _known(self) -> list[int]:
        return known_labels_of(self.truth)

    @cached_property
    def _ranks(self) -> Float[np.ndarray, "labels images"]:
        return rankdata(self.scores[:, self._known], axis=0).T

    @property
    def n_units(self) -> int:
        """Images, or whole groups of them."""
        return int(self._units.max()) + 1

    @property
    def value(self) -> float:
        """The mean of the images as they are."""
        return self._panel.values[self.name, None]

    def affordable(self, wanted: int) -> int:
        """As many resamples and exchanges as take seconds.

        Args:
            wanted: At most.

        Returns:
            How many.
        """
        return affordable_resamples(_EXCHANGE_COST * self._ranks.size, wanted)

    def drawn(self, counts: Float[np.ndarray, "resamples units"]) -> Float[np.ndarray, " resamples"]:
        """The mean over the labels that a resample has.

        Args:
            counts: How often each unit is in each resample.

        Returns:
            Its value in each.
        """
        return self._panel.resampled(counts[:, self._units])[of_those_left(self.name), None]

    def differing(self, other: LabelRanking) -> Bool[np.ndarray, " units"]:
        """The units that the two models rank otherwise.

        Args:
            other: Of the same images.

        Returns:
            Whether each is one.

        Raises:
            ShapeError: The two are of other images or labels.
        """
        if self.truth.shape != other.truth.shape or (self.truth != other.truth).any():
            raise ShapeError("Batch size mismatch: the two evaluations are of different images or labels")
        moved = (self._ranks != other._ranks).any(axis=0)
        return np.bincount(self._units, moved, self.n_units) > 0

    def exchanged(
        self,
        other: LabelRanking,
        differing: Bool[np.ndarray, " units"],
        swapped: Bool[np.ndarray, "exchanges differing"],
    ) -> tuple[Float[np.ndarray, " exchanges"], Float[np.ndarray, " exchanges"]]:
        """Both models' means after an exchange of their answers.

        Args:
            other: Of the same images.
            differing: The units that are ranked otherwise, as ``differing`` gives them.
            swapped: Whether each of these is exchanged.

        Returns:
            This model's, and the other's.
        """
        chosen = np.zeros((len(swapped), self.n_units), dtype=bool)
        chosen[:, differing] = swapped
        at_once = max(1, _BLOCK // len(self._units))
        blocks = [chosen[start : start + at_once, self._units] for start in range(0, len(chosen), at_once)]
        return (
            np.concatenate([self._mean(self._ranks, other._ranks, rows) for rows in blocks]),
            np.concatenate([self._mean(other._ranks, self._ranks, rows) for rows in blocks]),
        )

    def _mean(self, own: np.ndarray, its: np.ndarray, rows: np.ndarray) -> np.ndarray:
        of_labels = [
            _figure(self.name, np.where(rows, b, a), self.truth[:, k])
            for a, b, k in zip(own, its, self._known, strict=True)
        ]
        return np.mean(of_labels, axis=0)


def _figure(
    name: str, scores: Float[np.ndarray, "exchanges images"], positive: Bool[np.ndarray, " images"]
) -> Float[np.ndarray, " exchanges"]:
    """Average precision or AUROC of many rankings of the same images; a threshold accepts all images of equal score."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ordered, hits = np.take_along_axis(scores, order, axis=1), positive[order].astype(np.float64)
    n = hits.shape[1]
    last = np.ones(ordered.shape, dtype=bool)
    last[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    # The place of the last image of equal score, seen from each image.
    ends = np.minimum.accumulate(np.where(last, np.arange(n), n - 1)[:, ::-1], axis=1)[:, ::-1]
    true = np.take_along_axis(np.cumsum(hits, axis=1), ends, axis=1)
    if name == "mAP":
        return (hits * true / (ends + 1)).sum(axis=1) / positive.sum()
    first = np.ones(ordered.shape, dtype=bool)
    first[:, 1:] = last[:, :-1]
    starts = np.maximum.accumulate(np.where(first, np.arange(n), 0), axis=1)
    before = np.take_along_axis(np.cumsum(hits, axis=1) - hits, starts, axis=1)
    negatives = (~positive).sum()
    above, tied = starts - before, (ends + 1 - starts) - (true - before)
    return (hits * (negatives - above - tied / 2)).sum(axis=1) / (positive.sum() * negatives)
