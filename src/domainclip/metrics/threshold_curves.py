"""Figures of one "is it this, or not?" question at every threshold, in many resamples at once.

The point figures of a report come from scikit-learn; these are the same figures for whole blocks of resamples, since
a thousand calls for each class would take minutes. All follow from two running counts along the scores, highest
first: true positives TP and false positives FP among the rows that a threshold accepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from domainclip.errors import ShapeError
from domainclip.metrics.bootstrap import Draws, Values, mean_draws, mean_of_defined

SPECIFICITIES = (0.90, 0.95)
RECALL = 0.90
_SLACK = 1e-9  # fractions such as 1 - 0.9 are not exact in floating point

THRESHOLD_FIGURES = (
    "auroc",
    "ap",
    "youden_sensitivity",
    "youden_specificity",
    "sensitivity_at_spec90",
    "sensitivity_at_spec95",
    "f1_max",
    "precision_at_recall90",
    "false_alarm_rate_at_recall90",
)


def threshold_figures(scores: Float[np.ndarray, " rows"], positive: Bool[np.ndarray, " rows"]) -> dict[str, float]:
    """The figures of one question, each in 0…1, on scikit-learn's curves; all NaN where a side has no row.

    ``auroc``; ``ap`` (average precision, the area under precision and recall); sensitivity and specificity at the
    Youden point (where their sum is largest; Youden 1950); the highest sensitivity whose specificity is at least 0.90
    and 0.95; ``f1_max``; the highest precision whose recall is at least 0.90; and the fraction of the negative rows
    that the highest threshold with a recall of 0.90 accepts. A threshold accepts all rows of equal score, so ties help
    nobody.

    Args:
        scores: ``[rows]``; higher is more likely one.
        positive: ``[rows]``; whether the row is one.

    Returns:
        The figures by name.

    Raises:
        ShapeError: Scores are NaN or infinite, there is no row, or the shapes differ.
    """
    scores, positive = _checked(scores, positive)
    if positive.all() or not positive.any():
        return dict.fromkeys(THRESHOLD_FIGURES, np.nan)
    false_rate, true_rate, _ = roc_curve(positive, scores, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(positive, scores)
    # Equal sums may differ in the last bit; the highest of the thresholds is meant.
    youden = int(np.round(true_rate - false_rate, 12).argmax())
    with np.errstate(invalid="ignore"):
        f1 = np.where(precision + recall > 0, 2 * precision * recall / (precision + recall), 0.0)
    figures = [
        roc_auc_score(positive, scores),
        average_precision_score(positive, scores),
        true_rate[youden],
        1 - false_rate[youden],
        *(true_rate[false_rate <= 1 - wanted + _SLACK].max() for wanted in SPECIFICITIES),
        f1.max(),
        precision[recall >= RECALL - _SLACK].max(),
        false_rate[true_rate >= RECALL - _SLACK].min(),
    ]
    return dict(zip(THRESHOLD_FIGURES, map(float, figures), strict=True))


class ThresholdCurves:
    """``threshold_figures`` of many resamples of the same rows.

    Args:
        scores: ``[rows]``; higher is more likely one.
        positive: ``[rows]``; whether the row is one.

    Raises:
        ShapeError: As ``threshold_figures`` does.
    """

    def __init__(self, scores: Float[np.ndarray, " rows"], positive: Bool[np.ndarray, " rows"]) -> None:
        scores, positive = _checked(scores, positive)
        self._order = np.argsort(-scores, kind="stable")
        self._positive = positive[self._order].astype(np.float64)
        ordered = scores[self._order]
        # The last row of each run of equal scores: no threshold lies inside a run.
        self._ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)

    def figures(
        self, counts: Float[np.ndarray, "resamples rows"], names: Sequence[str] = THRESHOLD_FIGURES
    ) -> dict[str, Float[np.ndarray, " resamples"]]:
        """The figures of those names, NaN for a resample in which a side has no row. ``counts``: how often each row
        is in each resample.

        Args:
            counts: How often each row is in each resample.
            names: Which figures.

        Returns:
            Values by name.
        """
        ordered = counts[:, self._order]
        tp = np.cumsum(ordered * self._positive, axis=1)[:, self._ends]
        accepted = np.cumsum(ordered, axis=1)[:, self._ends]
        fp = accepted - tp
        positives, negatives = tp[:, -1:], fp[:, -1:]
        defined = (positives[:, 0] > 0) & (negatives[:, 0] > 0)
        p, n = np.maximum(positives, 1), np.maximum(negatives, 1)
        # Before any threshold nothing is accepted.
        start = np.zeros((len(counts), 1))
        tp0, fp0 = np.hstack([start, tp]), np.hstack([start, fp])
        precision = tp / np.maximum(accepted, 1)
        found: dict[str, np.ndarray] = {}
        for name in names:
            if name == "auroc":
                values = ((tp0[:, 1:] + tp0[:, :-1]) * np.diff(fp0, axis=1)).sum(axis=1) / (2 * p * n)[:, 0]
            elif name == "ap":
                values = (np.diff(tp0, axis=1) * precision).sum(axis=1) / p[:, 0]
            elif name.startswith("youden"):
                # TPR - FPR over a common denominator: whole numbers, so that equal sums are equal.
                at = (tp0 * n - fp0 * p).argmax(axis=1)[:, None]
                true, false = np.take_along_axis(tp0, at, 1) / p, np.take_along_axis(fp0, at, 1) / n
                values = (true if name == "youden_sensitivity" else 1 - false)[:, 0]
            elif name.startswith("sensitivity_at_spec"):
                allowed = fp0 <= (1 - int(name[-2:]) / 100 + _SLACK) * n
                values = np.where(allowed, tp0, 0).max(axis=1) / p[:, 0]
            elif name == "f1_max":
                values = (2 * tp / (accepted + p)).max(axis=1)
            else:
                enough = tp >= (RECALL - _SLACK) * p
                if name == "precision_at_recall90":
                    values = np.where(enough, precision, 0).max(axis=1)
                else:
                    values = np.where(enough, fp / n, np.inf).min(axis=1)
            found[name] = np.where(defined, values, np.nan)
        return found


class ThresholdPanel:
    """One yes-or-no question for each label, and the mean over the labels that have rows on both sides.

    ``questions``: label → (scores, whether the row is one). ``names``: the figure of ``threshold_figures`` → what it
    is called of one label; ``means``: figure → what its mean is called.
    """

    def __init__(
        self,
        questions: Mapping[str, tuple[Float[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]],
        names: Mapping[str, str],
        means: Mapping[str, str],
    ) -> None:
        self._curves = {label: ThresholdCurves(*question) for label, question in questions.items()}
        self._names, self._means = dict(names), dict(means)
        self._figures = tuple(dict.fromkeys([*names, *means]))
        self.cost = len(questions)
        self._found = found = {label: threshold_figures(*question) for label, question in questions.items()}
        self.values: Values = {
            (name, label): found[label][figure] for label in questions for figure, name in self._names.items()
        }
        for figure, name in self._means.items():
            self.values[name, None] = float(mean_of_defined(np.array([found[label][figure] for label in questions])))

    def resampled(self, counts: Float[np.ndarray, "resamples rows"]) -> Draws:
        """The figures of each resample.

        Args:
            counts: How often each row is in each resample.

        Returns:
            Values ``[resamples]`` by name and label, and means with None for the label; NaN where a side has no row.
        """
        found = {label: curve.figures(counts, self._figures) for label, curve in self._curves.items()}
        draws: Draws = {(name, label): found[label][figure] for label in found for figure, name in self._names.items()}
        for figure, name in self._means.items():
            known = [not np.isnan(self._found[label][figure]) for label in found]
            draws |= mean_draws(name, np.stack([found[label][figure] for label in found]), known)
        return draws


def _checked(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if scores.ndim != 1 or scores.shape != positive.shape or len(scores) == 0:
        raise ShapeError(f"Batch size mismatch: scores of shape {scores.shape} for answers of shape {positive.shape}")
    if not np.isfinite(scores).all():
        raise ShapeError("The scores contain NaN or infinity: the model has diverged, or an embedding is all zeros")
    return scores, positive
