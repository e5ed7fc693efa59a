"""Panels: figures that are computed together, once for the test set and once for every resample of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, recall_score

from domainclip.metrics.calibration import expected_calibration_error
from domainclip.metrics.class_scores import ClassScores
from domainclip.metrics.threshold_curves import ThresholdCurves, threshold_figures

Key: TypeAlias = tuple[str, str | None]
"""A metric, and the class that it is of; None for a figure of the whole set."""
Values: TypeAlias = dict[Key, float]
Draws: TypeAlias = dict[Key, Float[np.ndarray, " resamples"]]

_BINS = 15  # of the calibration error, as in calibration.py


class Panel(Protocol):
    """``values`` of the rows as they are; ``resampled``, of each row taken as often as the counts say. NaN is a figure
    that the rows do not determine. ``cost``: curves drawn for one resample."""

    values: Values
    cost: int

    def resampled(self, counts: Float[np.ndarray, "resamples rows"]) -> Draws: ...


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
        found = {label: curve.figures(counts, self._figures) for label, curve in self._curves.items()}
        draws: Draws = {(name, label): found[label][figure] for label in found for figure, name in self._names.items()}
        for figure, name in self._means.items():
            known = [not np.isnan(self._found[label][figure]) for label in found]
            draws |= mean_draws(name, np.stack([found[label][figure] for label in found]), known)
        return draws


class ClassPanel:
    """Figures of the predicted classes and of how sure the model was of them.

    ``names`` of: ``acc1``, ``acc5``, ``mean_per_class_recall`` (recall averaged over the classes that have rows),
    ``macro_f1`` (over the same classes), ``ece`` (15 bins), ``quadratic_kappa`` (Cohen 1968; ``ordinals``: each
    class's place in the order, from 0), and ``recall`` of each class.
    """

    cost = 1

    def __init__(
        self, scores: ClassScores, names: Sequence[str], ordinals: Int[np.ndarray, " classes"] | None = None
    ) -> None:
        self._names = tuple(names)
        self._labels, self._n = scores.labels, len(scores.labels)
        self._truth, self._predicted = scores.targets, scores.predictions
        self._right = (self._truth == self._predicted).astype(np.float64)
        self._ordinals = ordinals
        own = np.take_along_axis(scores.log_probabilities, self._truth[:, None], axis=1)
        # Ties count against the model: the class itself is in the sum, which makes it the rank.
        self._in_five = ((scores.log_probabilities >= own).sum(axis=1) <= 5).astype(np.float64)
        self._gaps: np.ndarray | None = None
        if "ece" in names:
            self._probabilities = np.exp(scores.log_probabilities)
            confidence = self._probabilities.max(axis=1)
            edges = np.linspace(0, 1, _BINS + 1)[1:-1]
            self._gaps = np.zeros((len(self._truth), _BINS))
            self._gaps[np.arange(len(self._truth)), np.digitize(confidence, edges, right=True)] = (
                self._right - confidence
            )
        self.values: Values = {}
        present = np.unique(self._truth)
        self._present = np.isin(np.arange(self._n), present)
        for name in names:
            if name == "recall":
                found = recall_score(
                    self._truth, self._predicted, labels=np.arange(self._n), average=None, zero_division=np.nan
                )
                self.values |= {(name, label): float(v) for label, v in zip(self._labels, found, strict=True)}
            else:
                self.values[name, None] = float(self._value(name, present))

    def _value(self, name: str, present: np.ndarray) -> float:
        truth, predicted = self._truth, self._predicted
        if name == "acc1":
            return accuracy_score(truth, predicted)
        if name == "acc5":
            return float(self._in_five.mean())
        if name == "mean_per_class_recall":
            return recall_score(truth, predicted, labels=present, average="macro", zero_division=0.0)
        if name == "macro_f1":
            return f1_score(truth, predicted, labels=present, average="macro", zero_division=0.0)
        if name == "ece":
            return expected_calibration_error(torch.from_numpy(self._probabilities), torch.from_numpy(truth), _BINS)
        assert name == "quadratic_kappa" and self._ordinals is not None
        ordinals = np.arange(self._ordinals.max() + 1)
        if len(np.unique(np.concatenate([self._ordinals[truth], self._ordinals[predicted]]))) < 2:
            return np.nan  # one class alone: no agreement to expect by chance, and none to measure
        return cohen_kappa_score(self._ordinals[truth], self._ordinals[predicted], labels=ordinals, weights="quadratic")

    def resampled(self, counts: Float[np.ndarray, "resamples rows"]) -> Draws:
        draws: Draws = {}
        total = counts.sum(axis=1)
        classes = np.eye(self._n)
        support = counts @ classes[self._truth]
        hits = counts @ (classes[self._truth] * self._right[:, None])
        predicted = counts @ classes[self._predicted]
        recall = np.divide(hits, support, out=np.full_like(hits, np.nan), where=support > 0)
        for name in self._names:
            if name == "acc1":
                draws[name, None] = counts @ self._right / total
            elif name == "acc5":
                draws[name, None] = counts @ self._in_five / total
            elif name == "recall":
                draws |= {(name, label): recall[:, index] for index, label in enumerate(self._labels)}
            elif name == "mean_per_class_recall":
                draws |= mean_draws(name, recall.T, self._present)
            elif name == "macro_f1":
                # 2·TP / (2·TP + FN + FP), and the two parts of the denominator are what there is and what was said.
                f1 = np.divide(2 * hits, support + predicted, out=np.full_like(hits, np.nan), where=support > 0)
                draws |= mean_draws(name, f1.T, self._present)
            elif name == "ece":
                assert self._gaps is not None
                draws[name, None] = np.abs(counts @ self._gaps).sum(axis=1) / total
            else:
                draws[name, None] = self._kappas(counts, support, predicted, total)
        return draws

    def _kappas(self, counts: np.ndarray, support: np.ndarray, predicted: np.ndarray, total: np.ndarray) -> np.ndarray:
        assert self._ordinals is not None
        ordinals = self._ordinals.astype(np.float64)
        observed = counts @ np.square(ordinals[self._truth] - ordinals[self._predicted])
        by_chance = (
            np.einsum("rc,rd,cd->r", support, predicted, np.square(ordinals[:, None] - ordinals), optimize=True) / total
        )
        fractions = np.divide(observed, by_chance, out=np.full_like(observed, np.nan), where=by_chance > 0)
        return 1 - fractions


def of_those_left(name: str) -> str:
    """The key of a mean over the labels that a resample has, beside the one over all labels of the rows."""
    return f"{name} of those left"


def mean_draws(
    name: str, values: Float[np.ndarray, "labels resamples"], known: Sequence[bool] | Bool[np.ndarray, " labels"]
) -> Draws:
    """The mean over the labels ``known`` in the rows as they are, NaN for a resample that lacks one of them: a mean
    without the hard class is another figure. And, under ``of_those_left``, over whatever labels a resample has, for
    where most resamples lack one."""
    values = np.asarray(values)
    in_all = values[np.asarray(known, dtype=bool)]
    strict = in_all.mean(axis=0) if len(in_all) else np.full(values.shape[1], np.nan)
    return {(name, None): strict, (of_those_left(name), None): mean_of_defined(values)}


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "mean of empty slice": NaN is the answer meant
        return np.nanmean(values, axis=0)
