"""The fields' metrics against scikit-learn, torchmetrics, plain loops and small cases worked by hand."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, cohen_kappa_score, roc_auc_score
from torchmetrics.functional.classification import (
    binary_precision_at_fixed_recall,
    binary_sensitivity_at_specificity,
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_cohen_kappa,
)

from domainclip import CLIPFinetuningConfig, CLIPFinetuningController
from domainclip.config.field_metric_slices import FieldMetricSettings
from domainclip.data import DatasetLoader
from domainclip.data.splits import load_splits
from domainclip.errors import ConfigurationError, ShapeError
from domainclip.evaluation import DomainEvaluator, write_report
from domainclip.evaluation.class_scores import ClassScores
from domainclip.evaluation.evaluators import EvaluationResult
from domainclip.evaluation.field_markdown import figure_text
from domainclip.evaluation.field_metrics import FieldMetrics
from domainclip.evaluation.industrial_metrics import guess_normal_labels, industrial_part
from domainclip.evaluation.medical_metrics import medical_part, places_in_order
from domainclip.evaluation.metric_names import describe, greater_is_better, is_of_a_field
from domainclip.evaluation.panels import ClassPanel, Panel
from domainclip.evaluation.report import jsonable
from domainclip.evaluation.report_markdown import value_text
from domainclip.evaluation.retrieval_panel import RetrievalPanel
from domainclip.evaluation.scientific_metrics import cross_discipline_matrix, scientific_part
from domainclip.evaluation.threshold_curves import THRESHOLD_FIGURES, ThresholdCurves, threshold_figures

TEMPERATURE = 0.05


def some_scores(n: int = 120, classes: int = 4, seed: int = 0, groups: int | None = None) -> ClassScores:
    """Similarities on a coarse grid, so that there are ties, with classes of very different sizes."""
    rng = np.random.default_rng(seed)
    targets = rng.choice(classes, size=n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    targets[:classes] = np.arange(classes)
    similarities = rng.normal(0.2, 0.05, (n, classes))
    similarities[np.arange(n), targets] += 0.05
    ids = None if groups is None else [f"patient {number % groups}" for number in range(n)]
    labels = [f"class {number}" for number in range(classes)]
    return ClassScores.from_similarities(np.round(similarities, 2), targets, labels, TEMPERATURE, ids)


def scores_of(probabilities: list[list[float]], targets: list[int], labels: list[str], **more: Any) -> ClassScores:
    """With these very probabilities."""
    return ClassScores.from_similarities(np.log(probabilities), targets, labels, 1.0, **more)


def rows_of(scores: ClassScores, rows: np.ndarray) -> ClassScores:
    return replace(
        scores,
        log_probabilities=scores.log_probabilities[rows],
        targets=scores.targets[rows],
        predictions=scores.predictions[rows],
        groups=tuple(np.array(scores.groups, dtype=object)[rows]),
        disciplines=tuple(np.array(scores.disciplines, dtype=object)[rows]),
    )


def drawn(n: int, resamples: int = 12, seed: int = 1) -> tuple[list[np.ndarray], np.ndarray]:
    rows = [np.random.default_rng([seed, number]).integers(n, size=n) for number in range(resamples)]
    return rows, np.stack([np.bincount(part, minlength=n) for part in rows]).astype(float)


def plain_figures(scores: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """Every threshold tried, one after the other; areas by counting pairs and by their definition."""
    points = [(0.0, 0.0, None)]
    for threshold in sorted(set(scores), reverse=True):
        accepted = scores >= threshold
        tp, fp = (accepted & positive).sum(), (accepted & ~positive).sum()
        points.append((tp / positive.sum(), fp / (~positive).sum(), tp / (tp + fp)))
    pairs = [(p > q) + 0.5 * (p == q) for p in scores[positive] for q in scores[~positive]]
    best = max(points, key=lambda point: round(point[0] - point[1], 12))
    enough = [point for point in points if point[0] >= 0.9 - 1e-9]
    steps = pairwise(points)
    return {
        "auroc": sum(pairs) / len(pairs),
        "ap": sum((after[0] - before[0]) * after[2] for before, after in steps),
        "youden_sensitivity": best[0],
        "youden_specificity": 1 - best[1],
        "sensitivity_at_spec90": max(tpr for tpr, fpr, _ in points if 1 - fpr >= 0.9 - 1e-9),
        "sensitivity_at_spec95": max(tpr for tpr, fpr, _ in points if 1 - fpr >= 0.95 - 1e-9),
        "f1_max": max(2 * p * r / (p + r) if p + r else 0.0 for r, _, p in points if p is not None),
        "precision_at_recall90": max(p for _, _, p in enough if p is not None),
        "false_alarm_rate_at_recall90": min(fpr for _, fpr, _ in enough),
    }


# --- one question at every threshold ---


@pytest.mark.parametrize("seed", range(6))
def test_threshold_figures_equal_a_plain_loop_scikit_learn_and_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive = rng.random(70) < (0.1 if seed % 2 else 0.5)
    positive[:2] = [True, False]
    scores = np.round(rng.normal(size=70) + positive, 1)  # with ties
    found = threshold_figures(scores, positive)
    assert found == pytest.approx(plain_figures(scores, positive))
    assert tuple(found) == THRESHOLD_FIGURES
    assert found["auroc"] == roc_auc_score(positive, scores)
    assert found["ap"] == average_precision_score(positive, scores)
    tensors = torch.from_numpy(scores).sigmoid(), torch.from_numpy(positive).long()
    sensitivity = binary_sensitivity_at_specificity(*tensors, min_specificity=0.9)[0]
    assert found["sensitivity_at_spec90"] == pytest.approx(sensitivity.item())
    precision = binary_precision_at_fixed_recall(*tensors, min_recall=0.9)[0]
    assert found["precision_at_recall90"] == pytest.approx(precision.item())


@pytest.mark.parametrize("seed", range(4))
def test_curves_of_resamples_equal_the_figures_of_the_rows_drawn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive = rng.random(50) < 0.3
    scores = np.round(rng.normal(size=50) + 0.8 * positive, 1)
    rows, counts = drawn(50, 25, seed)
    found = ThresholdCurves(scores, positive).figures(counts)
    for number, part in enumerate(rows):
        expected = threshold_figures(scores[part], positive[part])
        assert {name: found[name][number] for name in found} == pytest.approx(expected)


def test_one_side_without_rows_is_undefined_and_not_a_number_made_up() -> None:
    for side in (np.ones(3, bool), np.zeros(3, bool)):
        assert all(np.isnan(value) for value in threshold_figures(np.arange(3.0), side).values())
    curves = ThresholdCurves(np.arange(3.0), np.array([True, False, False]))
    found = curves.figures(np.array([[0.0, 2, 1], [3, 0, 0], [1, 1, 1]]))
    for values in found.values():
        assert np.isnan(values[:2]).all() and not np.isnan(values[2])


def test_equal_scores_are_worth_no_more_than_a_coin() -> None:
    found = threshold_figures(np.zeros(10), np.arange(10) < 3)
    assert (found["auroc"], found["ap"]) == (0.5, pytest.approx(0.3))
    assert found["sensitivity_at_spec90"] == 0.0
    assert found["false_alarm_rate_at_recall90"] == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ShapeError, match="NaN or infinity"):
        threshold_figures(np.array([0.0, bad]), np.array([True, False]))
    with pytest.raises(ShapeError, match="NaN"):
        ThresholdCurves(np.array([0.0, bad]), np.array([True, False]))
    with pytest.raises(ShapeError):
        ClassScores.from_similarities(np.array([[0.0, bad], [1.0, 0.0]]), [0, 1], ["a", "b"], 1.0)


# --- probabilities ---


def test_log_odds_are_those_of_the_softmax() -> None:
    scores = some_scores()
    probabilities = np.exp(scores.log_probabilities)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(120))
    some = probabilities[:, [1, 3]].sum(axis=1)
    assert scores.log_odds([1, 3]) == pytest.approx(np.log(some / (1 - some)))


def test_a_sharp_temperature_does_not_turn_sure_pictures_into_ties() -> None:
    """At CLIP's 0.01 both first pictures are of class a with a probability that rounds to 1."""
    similarities = np.array([[1.0, 0.2, 0.1], [0.9, 0.4, 0.1], [0.2, 0.9, 0.1]])
    scores = ClassScores.from_similarities(similarities, [0, 0, 1], ["a", "b", "c"], 0.01)
    probabilities = np.exp(scores.log_probabilities)
    assert probabilities[0, 0] == probabilities[1, 0] == 1.0
    assert scores.log_odds([0])[0] > scores.log_odds([0])[1] > scores.log_odds([0])[2]


def test_a_temperature_must_be_positive_and_shapes_must_fit() -> None:
    with pytest.raises(ConfigurationError, match="Temperature must be positive"):
        ClassScores.from_similarities(np.eye(2), [0, 1], ["a", "b"], 0.0)
    with pytest.raises(ShapeError, match="Batch size mismatch"):
        ClassScores.from_similarities(np.eye(2), [0, 1], ["a", "b", "c"], 1.0)
    with pytest.raises(ShapeError, match="1 groups"):
        ClassScores.from_similarities(np.eye(2), [0, 1], ["a", "b"], 1.0, ["patient"])


# --- panels: every resample as the rows drawn ---


def parts_of(name: str, scores: ClassScores) -> list[Panel]:
    if name == "medical":
        return list(medical_part(scores, [f"class {number}" for number in (2, 0, 1, 3)]).panels)
    if name == "industrial":
        return list(industrial_part(scores, ["class 1", "class 2"]).panels)
    if name == "defects alone":
        return list(industrial_part(scores).panels)
    return [*scientific_part(scores).panels, ClassPanel(scores, ("acc5",))]


@pytest.mark.parametrize("name", ["medical", "industrial", "defects alone", "scientific"])
def test_resampled_panels_equal_panels_of_the_rows_drawn(name: str) -> None:
    scores = some_scores(60)
    rows, counts = drawn(60)
    for place, panel in enumerate(parts_of(name, scores)):
        found = panel.resampled(counts)
        assert found.keys() == panel.values.keys()
        for number, part in enumerate(rows):
            expected = parts_of(name, rows_of(scores, part))[place].values
            for key, values in found.items():
                assert values[number] == pytest.approx(expected[key], nan_ok=True), key


def test_retrieval_panel_by_hand_and_resampled() -> None:
    hits = np.array([[0, 0], [1, 0], [2, 1], [3, 2]])  # two pictures have the first caption
    panel = RetrievalPanel([1, 2, 4, 1], [1, 3, 11], hits, ["i2t_R@1", "t2i_R@1", "i2t_MRR", "t2i_MRR"])
    assert panel.values == {
        ("i2t_R@1", None): 0.5,
        ("t2i_R@1", None): pytest.approx(1 / 3),
        ("i2t_MRR", None): pytest.approx((1 + 1 / 2 + 1 / 4 + 1) / 4),
        ("t2i_MRR", None): pytest.approx((1 + 1 / 3 + 1 / 11) / 3),
    }
    # Picture 0 twice, 1 and 2 once, 3 not at all: the first caption counts 3/2, the second 1, the third 0.
    found = panel.resampled(np.array([[2.0, 1, 1, 0]]))
    assert found["i2t_MRR", None][0] == pytest.approx((2 + 1 / 2 + 1 / 4) / 4)
    assert found["t2i_MRR", None][0] == pytest.approx((1.5 + 1 / 3) / 2.5)


def test_hits_at_ten_is_left_out_where_ten_candidates_make_it_certain() -> None:
    hits = np.stack([np.arange(12), np.arange(12) % 10], axis=1)
    panel = RetrievalPanel(np.arange(1, 13) % 10 + 1, np.arange(2, 12), hits, ["i2t_Hits@10", "t2i_Hits@10"])
    assert panel.names == ["t2i_Hits@10"]  # ten captions, twelve pictures
    assert panel.values["t2i_Hits@10", None] == pytest.approx(9 / 10)
    with pytest.raises(ShapeError, match="hits"):
        RetrievalPanel([1, 1], [1, 1], np.array([[0, 0], [1, 0]]), ["i2t_R@1"])


# --- medicine ---


def flat_of(field: Any, scores: ClassScores, **settings: Any) -> tuple[dict[str, float], dict[str, Any]]:
    return FieldMetrics(field, lambda: TEMPERATURE, FieldMetricSettings(**settings)).score(scores, None)


def test_medical_figures_equal_torchmetrics_and_scikit_learn() -> None:
    scores = some_scores(200, 5)
    flat, shown = flat_of("medical", scores, bootstrap_resamples=20, label_order=list(scores.labels))
    logits, truth = torch.from_numpy(scores.log_probabilities), torch.from_numpy(scores.targets)
    odds = np.stack([scores.log_odds([number]) for number in range(5)], axis=1)
    each = multiclass_auroc(logits.exp(), truth, 5, average=None)
    assert [row["auroc"]["value"] for row in shown["per_label"]] == pytest.approx(each.tolist(), abs=1e-6)
    assert flat["macro_auroc"] == pytest.approx(each.mean().item(), abs=1e-6)
    auprc = [average_precision_score(scores.targets == number, odds[:, number]) for number in range(5)]
    assert flat["macro_auprc"] == pytest.approx(np.mean(auprc))
    # A tie is a wrong answer here and torchmetrics takes the first: the rows with a tie at the top are left out.
    top = np.sort(scores.log_probabilities, axis=1)
    clear = rows_of(scores, np.flatnonzero(top[:, -1] > top[:, -2]))
    flat, _ = flat_of("medical", clear, bootstrap_resamples=0, label_order=list(scores.labels))
    logits, truth = torch.from_numpy(clear.log_probabilities), torch.from_numpy(clear.targets)
    kappa = multiclass_cohen_kappa(logits, truth, 5, weights="quadratic")
    assert flat["quadratic_kappa"] == pytest.approx(kappa.item(), abs=1e-6)
    error = multiclass_calibration_error(logits.softmax(dim=1), truth, 5, n_bins=15, norm="l1")
    assert flat["ece"] == pytest.approx(error.item(), abs=1e-6)


def test_a_small_medical_case_by_hand() -> None:
    # Four patients: two ill, of whom one is scored below a healthy one.
    scores = scores_of([[0.9, 0.1], [0.3, 0.7], [0.4, 0.6], [0.1, 0.9]], [0, 0, 1, 1], ["ill", "healthy"])
    flat, shown = flat_of("medical", scores, bootstrap_resamples=0)
    ill = shown["per_label"][0]
    assert ill["pictures"] == 2
    assert ill["auroc"]["value"] == 0.75  # three of four pairs in order
    assert ill["auprc"]["value"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert (ill["sensitivity_at_youden"]["value"], ill["specificity_at_youden"]["value"]) == (0.5, 1.0)
    assert flat["acc1"] == 0.75 and flat["balanced_accuracy"] == 0.75
    assert flat["ece"] == pytest.approx((0.1 + 0.7 + 0.4 + 0.1) / 4)  # .9, .7 (wrong), .6 and .9: each sure in its bin


@pytest.mark.parametrize("order", [("mild", "moderate", "severe"), ("severe", "mild", "moderate")])
def test_quadratic_kappa_follows_the_order_of_the_grades(order: tuple[str, ...]) -> None:
    labels = ["severe", "mild", "moderate"]
    truth = np.array([0, 0, 1, 1, 2, 2, 2, 1])
    said = np.array([0, 1, 1, 2, 2, 0, 2, 1])
    scores = scores_of((np.eye(3)[said] * 0.7 + 0.1).tolist(), truth.tolist(), labels)
    flat, _ = flat_of("medical", scores, bootstrap_resamples=0, label_order=list(order))
    names = np.array(labels)
    expected = cohen_kappa_score(
        [order.index(name) for name in names[truth]], [order.index(name) for name in names[said]], weights="quadratic"
    )
    assert flat["quadratic_kappa"] == pytest.approx(expected)


def test_grades_may_be_more_than_the_rows_have_and_not_fewer() -> None:
    assert places_in_order(["b", "d"], ["a", "b", "c", "d"]).tolist() == [1, 3]
    with pytest.raises(ConfigurationError, match=r"lacks the class 'severe' \(it has 'sever'\)"):
        places_in_order(["mild", "severe"], ["mild", "sever"])


def test_no_kappa_without_an_order_and_no_calibration_error_of_a_sigmoid() -> None:
    scores = some_scores()
    flat, _ = flat_of("medical", scores, bootstrap_resamples=0)
    assert "quadratic_kappa" not in flat and "ece" in flat
    flat, shown = FieldMetrics("medical", lambda: 1.0, FieldMetricSettings(bootstrap_resamples=0), sigmoid=True).score(
        scores, None
    )
    assert "ece" not in flat and any("sigmoid" in note for note in shown["notes"])


# --- inspection ---


@pytest.mark.parametrize(
    ("labels", "normal"),
    [
        (["crack", "good", "scratch"], ["good"]),
        (["No_Defect", "defect"], ["No_Defect"]),
        (["defect-free", "dent"], ["defect-free"]),
        (
            ["monocrystalline defective", "monocrystalline functional", "polycrystalline functional"],
            ["monocrystalline functional", "polycrystalline functional"],
        ),
        (["OK", "NOK"], ["OK"]),
        (["ok", "not ok"], ["ok"]),
        (["normal", "abnormal"], ["normal"]),
        (["functional", "non-functional"], ["functional"]),
        (["mouse bite", "spur", "short"], []),
        (["good", "normal"], []),  # nothing left to be a defect
    ],
)
def test_the_normal_class_is_guessed_from_its_name(labels: list[str], normal: list[str]) -> None:
    assert guess_normal_labels(labels) == normal


def test_a_small_industrial_case_by_hand() -> None:
    labels = ["good", "crack", "stain"]
    probabilities = [
        [0.8, 0.1, 0.1],
        [0.4, 0.5, 0.1],  # a good part stopped
        [0.7, 0.2, 0.1],
        [0.2, 0.7, 0.1],
        [0.6, 0.3, 0.1],  # a crack missed
        [0.1, 0.8, 0.1],  # a stain taken for a crack: a defect all the same
    ]
    scores = scores_of(probabilities, [0, 0, 0, 1, 1, 2], labels)
    flat, shown = flat_of("industrial", scores, bootstrap_resamples=0)
    assert flat["false_alarm_rate"] == pytest.approx(1 / 3)
    each = {row["label"]: row["defect_recall"]["value"] for row in shown["per_label"] if "defect_recall" in row}
    assert each == {"crack": 0.5, "stain": 1.0}
    assert flat["mean_defect_recall"] == 0.75
    assert flat["acc1"] == pytest.approx(4 / 6 - 1 / 6)
    defect = np.array([False, False, False, True, True, True])
    one_minus_good = 1 - np.array(probabilities)[:, 0]
    assert flat["image_auroc"] == roc_auc_score(defect, one_minus_good) == pytest.approx(8 / 9)
    assert flat["image_ap"] == pytest.approx(average_precision_score(defect, one_minus_good))
    assert flat["f1_max"] == pytest.approx(2 * 3 / (4 + 3))
    assert flat["precision_at_recall90"] == pytest.approx(3 / 4)
    assert flat["false_alarm_rate_at_recall90"] == pytest.approx(1 / 3)
    assert any("Normal: good (guessed from 'good' in the name" in note for note in shown["notes"])


def test_normal_labels_given_overrule_the_guess() -> None:
    scores = some_scores(classes=3)
    scores = replace(scores, labels=("good", "variant", "crack"))
    _, guessed = flat_of("industrial", scores, bootstrap_resamples=0)
    flat, shown = flat_of("industrial", scores, bootstrap_resamples=0, normal_label=["good", "variant"])
    assert any("Normal: good, variant (as normal_label says)" in note for note in shown["notes"])
    rest = scores.log_probabilities[:, 2]
    assert flat["image_auroc"] == pytest.approx(roc_auc_score(scores.targets == 2, rest))
    assert guessed["metrics"]["image_auroc"]["value"] != flat["image_auroc"]


def test_a_normal_label_that_is_no_class_is_an_error_with_the_nearest() -> None:
    scores = replace(some_scores(classes=2), labels=("good", "crack"))
    with pytest.raises(ConfigurationError, match="'goood' is no class of these rows: did you mean 'good'"):
        flat_of("industrial", scores, normal_label="goood")
    with pytest.raises(ConfigurationError, match="which are good, crack"):
        flat_of("industrial", scores, normal_label="xyz")
    with pytest.raises(ConfigurationError, match="names every class"):
        flat_of("industrial", scores, normal_label=["good", "crack"])


def test_defects_without_a_normal_class_are_told_from_each_other() -> None:
    scores = some_scores()
    flat, shown = flat_of("industrial", scores, bootstrap_resamples=0)
    assert "image_auroc" not in flat and "false_alarm_rate" not in flat
    auroc = [roc_auc_score(scores.targets == n, scores.log_odds([n])) for n in range(4)]
    assert flat["macro_auroc"] == pytest.approx(np.mean(auroc))
    assert any("set normal_label" in note for note in shown["notes"])


# --- the sciences ---


def test_scientific_figures_are_those_of_the_general_evaluation() -> None:
    scores = some_scores(150, 8)
    flat, shown = flat_of("scientific", scores, bootstrap_resamples=30)
    assert list(flat) == ["acc1", "acc5", "macro_f1", "mean_per_class_recall"]
    right = scores.targets == scores.predictions
    assert flat["acc1"] == right.mean()
    assert flat["mean_per_class_recall"] == pytest.approx(
        np.mean([right[scores.targets == n].mean() for n in range(8)])
    )
    assert [row["recall"]["value"] for row in shown["per_label"]] == pytest.approx(
        [right[scores.targets == n].mean() for n in range(8)]
    )
    assert shown["matrix"] is None
    assert "acc5" not in flat_of("scientific", some_scores(50, 4), bootstrap_resamples=0)[0]


def test_the_cross_discipline_matrix_by_hand() -> None:
    labels = ["basalt", "granite", "pollen"]
    said, truth = np.array([0, 1, 2, 2, 0, 2]), [0, 0, 1, 1, 2, 2]
    groups = ["geology/1", "geology/2", "geology/3", "geology/3", "botany/1", "botany/1"]
    scores = scores_of((np.eye(3)[said] * 0.7 + 0.1).tolist(), truth, labels, groups=groups)
    assert cross_discipline_matrix(scores) == {
        "disciplines": ["botany", "geology"],
        "pictures": [2, 4],
        "acc1": [0.5, 0.25],
        "counts": [[1, 1], [2, 2]],
    }


def test_disciplines_from_labels_from_shared_classes_and_from_nowhere() -> None:
    rows = (np.eye(3)[[0, 1, 2, 0]] * 0.7 + 0.1).tolist()
    by_label = cross_discipline_matrix(scores_of(rows, [0, 1, 2, 2], ["rock: basalt", "rock: granite", "plant: oak"]))
    assert by_label is not None
    assert (by_label["disciplines"], by_label["counts"]) == (["plant", "rock"], [[1, 1], [0, 2]])
    shared = scores_of(rows, [0, 1, 2, 0], ["a", "b", "c"], groups=["x/1", "x/2", "x/3", "y/1"])
    found = cross_discipline_matrix(shared)
    assert found is not None and found["counts"] is None and found["pictures"] == [3, 1]
    for groups in ([None] * 4, ["p 1", "p 2", "p 3", "p 4"], ["x/1", "x/2", "x/3", None], ["a/1", "b/1", "c/1", "d/1"]):
        assert cross_discipline_matrix(scores_of(rows, [0, 1, 2, 0], ["a", "b", "c"], groups=groups)) is None


def test_a_rows_own_discipline_comes_before_any_prefix() -> None:
    rows = (np.eye(3)[[0, 1, 2, 0]] * 0.7 + 0.1).tolist()
    own = ["geology", "geology", "botany", "botany"]
    found = cross_discipline_matrix(
        scores_of(rows, [0, 1, 2, 2], ["a", "b", "c"], groups=["x/1", "x/2", "y/1", "y/2"], disciplines=own)
    )
    assert found is not None
    assert (found["disciplines"], found["counts"]) == (["botany", "geology"], [[1, 1], [0, 2]])
    with pytest.raises(ShapeError, match="3 disciplines for 4 pictures"):
        scores_of(rows, [0, 1, 2, 2], ["a", "b", "c"], disciplines=own[:3])


@pytest.mark.parametrize("where", ["table", "json", "meta"])
def test_the_discipline_column_reaches_the_matrix(tmp_path: Path, where: str) -> None:
    names = [f"{n}.png" for n in range(12)]
    for name in names:
        (tmp_path / name).write_bytes(b"never decoded here")
    of_row = ["wood" if n % 3 == 0 else "steel" for n in range(12)]
    rows = [
        {"image_path": name, "caption": f"a {Noisy.labels[n % 3]}, view {n % 4}", "label": Noisy.labels[n % 3],
         "group": f"g{n}", "discipline": of_row[n]}
        for n, name in enumerate(names)
    ]  # fmt: skip
    in_table = ["image_path", "caption", "label", *(["group", "discipline"] if where == "table" else [])]

    def write(name: str, columns: list[str]) -> None:
        with open(tmp_path / name, "w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    if where == "json":
        (tmp_path / "test.json").write_text(json.dumps(rows), encoding="utf-8")
        pairs: Any = DatasetLoader.from_json(tmp_path / "test.json")
    else:
        write("train.csv", in_table)
        write("test.csv", in_table)
        if where == "meta":
            write("meta.csv", ["image_path", "group", "discipline"])
        pairs = load_splits(tmp_path).test
    assert [pair.discipline for pair in pairs] == of_row
    assert pickle.loads(pickle.dumps(pairs[0])).discipline == "wood"
    metrics = FieldMetrics("scientific", lambda: 0.1, FieldMetricSettings(bootstrap_resamples=0))
    result = DomainEvaluator(pairs, ["{}"], field=metrics).evaluate(Noisy(0.1))
    assert result.details["field"]["matrix"]["disciplines"] == ["steel", "wood"]
    assert result.details["field"]["matrix"]["counts"] == [[8, 0], [0, 4]]


# --- what the rows do not settle ---


@pytest.mark.parametrize("field", ["medical", "industrial", "scientific", "general"])
def test_two_rows_one_class_and_an_absent_class_give_figures_or_none_but_no_nonsense(field: str) -> None:
    labels = ["good", "crack", "stain"]
    two = scores_of([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]], [0, 1], labels)
    one_class = scores_of([[0.8, 0.1, 0.1]] * 5, [0] * 5, labels)
    absent = replace(some_scores(40, 3), labels=("good", "crack", "stain"))
    absent = rows_of(absent, np.flatnonzero(absent.targets < 2))
    for scores in (two, one_class, absent):
        flat, shown = flat_of(field, scores, bootstrap_resamples=200)
        assert flat["acc1"] == (scores.targets == scores.predictions).mean()
        text = json.dumps(shown, allow_nan=False)
        assert json.loads(text)["field"] == field
        for entry in shown["metrics"].values():
            assert "low" not in entry or entry["low"] <= entry["high"]
    flat, shown = flat_of("medical", absent, bootstrap_resamples=50)
    known = [roc_auc_score(absent.targets == n, absent.log_odds([n])) for n in (0, 1)]
    assert flat["macro_auroc"] == pytest.approx(np.mean(known))
    assert [row["label"] for row in shown["per_label"]] == ["good", "crack"]
    assert any("is of stain" in note for note in shown["notes"])
    flat, shown = flat_of("medical", one_class, bootstrap_resamples=50)
    assert "macro_auroc" not in flat and flat["balanced_accuracy"] == 1.0
    flat, shown = flat_of("industrial", one_class, bootstrap_resamples=50)
    assert "image_auroc" not in flat and flat["false_alarm_rate"] == 0.0 and "mean_defect_recall" not in flat


def test_a_collapsed_model_is_no_better_than_a_coin_and_right_about_nothing() -> None:
    scores = ClassScores.from_similarities(np.zeros((30, 3)), np.arange(30) % 3, ["good", "b", "c"], 0.01)
    flat, _ = flat_of("medical", scores, bootstrap_resamples=0)
    assert (flat["macro_auroc"], flat["acc1"], flat["macro_sensitivity_at_spec90"]) == (0.5, 0.0, 0.0)
    flat, _ = flat_of("industrial", scores, bootstrap_resamples=0)
    assert (flat["image_auroc"], flat["false_alarm_rate"]) == (0.5, 1.0)


# --- intervals ---


def test_intervals_are_by_group_and_say_so() -> None:
    rows = np.repeat(np.arange(60), 3)
    scores = rows_of(some_scores(60, 3), rows)
    grouped = replace(scores, groups=tuple(f"patient {row}" for row in rows))
    _, by_group = flat_of("medical", grouped)
    _, by_row = flat_of("medical", scores)
    _, once = flat_of("medical", some_scores(60, 3))
    widths = [part["metrics"]["macro_auroc"]["high"] - part["metrics"]["macro_auroc"]["low"]
              for part in (by_group, by_row, once)]  # fmt: skip
    assert widths[0] == pytest.approx(widths[2])
    assert widths[1] < 0.75 * widths[0]
    assert any("1,000 resamples of 60 groups of 180 pictures" in note for note in by_group["notes"])
    assert any("each picture counts as independent" in note for note in by_row["notes"])


def test_notes_on_few_units_one_group_fewer_resamples_and_none_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    _, few = flat_of("scientific", some_scores(40, 3, groups=8), bootstrap_resamples=50)
    assert any("With 8 independent units" in note for note in few["notes"])
    _, single = flat_of("scientific", some_scores(40, 3, groups=1), bootstrap_resamples=50)
    assert "low" not in single["metrics"]["acc1"] and any("one group" in note for note in single["notes"])
    _, none = flat_of("scientific", some_scores(40, 3), bootstrap_resamples=0)
    assert "low" not in none["metrics"]["acc1"] and none["notes"] == []
    monkeypatch.setattr("domainclip.evaluation.field_metrics.affordable_resamples", lambda cells, wanted: 120)
    _, dear = flat_of("scientific", some_scores(40, 3))
    assert any("120 resamples" in note and "not 1,000" in note for note in dear["notes"])
    assert dear["metrics"]["acc1"]["resamples"] == 120


def test_resamples_without_a_class_are_left_out_and_told() -> None:
    rare = np.zeros(60, int)
    rare[0] = 1
    rng = np.random.default_rng(0)
    scores = ClassScores.from_similarities(rng.normal(size=(60, 2)), rare, ["good", "crack"], 1.0)
    _, shown = flat_of("industrial", scores)
    entry = shown["metrics"]["image_auroc"]
    assert 250 < entry["undefined"] < 480 and entry["resamples"] + entry["undefined"] == 1000
    assert any(note.startswith(f"Up to {entry['undefined']} resamples lack a class") for note in shown["notes"])
    assert shown["metrics"]["false_alarm_rate"]["undefined"] == 0


# --- from pictures to a report ---


@dataclass(frozen=True)
class Row:
    image_path: Path
    caption: str
    label: str | None
    group: str | None = None


class Noisy:
    """Pictures at their class's axis plus noise; texts at their class's axis."""

    labels = ("good part", "cracked part", "stained part")

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def encode_images(self, paths: list[Path], /) -> torch.Tensor:
        numbers = [int(path.stem) for path in paths]
        noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))[numbers]
        return torch.nn.functional.normalize(torch.eye(3)[[n % 3 for n in numbers]] + self.noise * noise, dim=-1)

    def encode_texts(self, texts: list[str], /) -> torch.Tensor:
        rows = torch.tensor([[float(label in text) for label in self.labels] for text in texts])
        tilt = torch.tensor([[0.0, 0.0, 0.001 * len(text)] for text in texts])
        return torch.nn.functional.normalize(rows + tilt, dim=-1)


ROWS = [Row(Path(f"{n}.png"), f"a {Noisy.labels[n % 3]}, view {n % 4}", Noisy.labels[n % 3], f"line/{n // 2}")
        for n in range(60)]  # fmt: skip


def evaluated(field: Any, noise: float = 0.7, **settings: Any) -> EvaluationResult:
    metrics = FieldMetrics(field, lambda: 0.1, FieldMetricSettings(**settings))
    return DomainEvaluator(ROWS, ["{}"], field=metrics).evaluate(Noisy(noise))


def test_the_evaluator_hands_over_its_probabilities_groups_and_ranks() -> None:
    result = evaluated("scientific", bootstrap_resamples=100)
    shown = result.details["field"]
    assert shown["metrics"]["acc1"]["value"] == result.metrics["acc1"]
    assert result.metrics["i2t_Hits@10"] == result.metrics["i2t_R@10"]
    assert shown["metrics"]["t2i_MRR"]["value"] == pytest.approx(result.metrics["t2i_MRR"])
    assert any("30 groups of 60 pictures" in note for note in shown["notes"])
    medical = evaluated("medical", bootstrap_resamples=0)
    embed = Noisy(0.7)
    similarities = embed.encode_images([row.image_path for row in ROWS]) @ embed.encode_texts(sorted(Noisy.labels)).T
    truth = [sorted(Noisy.labels).index(str(row.label)) for row in ROWS]
    probabilities = torch.softmax(similarities.double() / 0.1, dim=1).numpy()
    assert medical.metrics["macro_auroc"] == pytest.approx(
        roc_auc_score(truth, probabilities, multi_class="ovr", average="macro"), abs=1e-9
    )


def test_without_a_field_nothing_is_added() -> None:
    result = DomainEvaluator(ROWS, ["{}"]).evaluate(Noisy(0.7))
    assert "field" not in result.details
    assert not any(is_of_a_field(name) for name in result.metrics)


def test_rows_without_labels_still_have_retrieval_in_the_fields_terms() -> None:
    rows = [replace(row, label=None) for row in ROWS]
    metrics = FieldMetrics("scientific", lambda: 0.1, FieldMetricSettings(bootstrap_resamples=50))
    result = DomainEvaluator(rows, ["{}"], field=metrics).evaluate(Noisy(0.7))
    assert set(result.details["field"]["metrics"]) == {"i2t_Hits@10", "t2i_Hits@10", "i2t_MRR", "t2i_MRR"}


def test_settings_that_do_not_fit_the_classes_are_found_before_any_picture_is_read() -> None:
    for field, settings in (("medical", {"label_order": ["a", "b"]}), ("industrial", {"normal_label": "fine"})):
        metrics = FieldMetrics(field, lambda: 0.1, FieldMetricSettings(**settings))  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError):
            DomainEvaluator(ROWS, ["{}"], field=metrics)


def test_the_report_says_before_and_after_with_intervals(tmp_path: Path) -> None:
    before, after = evaluated("industrial", 2.0), evaluated("industrial", 0.5)
    stored = json.loads(json.dumps(jsonable({"metrics": before.metrics, "details": before.details})))
    write_report(tmp_path, {"before": stored, "after": after})
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    entry = report["details"]["after"]["field"]["metrics"]["image_auroc"]
    assert entry["value"] == after.metrics["image_auroc"] == report["after"]["image_auroc"]
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    section = text.split("## In the terms of the field: inspection")[1].split("\n## ")[0]
    cells = (figure_text("image_auroc", part.details["field"]["metrics"]["image_auroc"]) for part in (before, after))
    assert f"| image AUROC, defect or not | {' | '.join(cells)} |" in section
    assert "false alarms (normal called a defect) (lower is better)" in section
    assert "| cracked part | 20 |" in section and "Normal: good part (guessed from 'good' in the name" in section
    # Shown once: not again in the table of general figures.
    assert text.count("| image AUROC, defect or not |") == 1


def test_the_report_shows_the_cross_discipline_matrix(tmp_path: Path) -> None:
    rows = [replace(row, group=f"{'steel' if n % 3 else 'wood'}/{n}") for n, row in enumerate(ROWS)]
    metrics = FieldMetrics("scientific", lambda: 0.1, FieldMetricSettings(bootstrap_resamples=0))
    write_report(tmp_path, {"after": DomainEvaluator(rows, ["{}"], field=metrics).evaluate(Noisy(0.7))})
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| discipline | pictures | taken for steel | taken for wood | accuracy |" in text
    assert "| wood | 20 |" in text


def test_figures_as_text() -> None:
    assert figure_text("false_alarm_rate", {"value": 0.0312}) == "3.1%"
    assert figure_text("macro_auroc", {"value": 0.9, "low": 0.85, "high": 0.951}) == "0.900 (0.850 to 0.951)"
    assert figure_text("quadratic_kappa", {"value": -0.1, "low": -0.2, "high": 0.05}) == "-0.100 (-0.200 to 0.050)"
    assert figure_text("ece", None) == "—"
    assert value_text("false_alarm_rate", 0.25) == "25.0%"
    assert value_text("quadratic_kappa", 0.25) == "0.25"


def test_every_figure_has_a_description_and_a_direction() -> None:
    names = {name for field in ("medical", "industrial", "scientific", "general")
             for name in evaluated(field, label_order=sorted(Noisy.labels), bootstrap_resamples=0).metrics}  # fmt: skip
    names |= set(flat_of("industrial", some_scores(), bootstrap_resamples=0)[0])
    for name in names:
        if not name.startswith("n_"):
            assert describe(name) != name, name
    assert [name for name in sorted(names) if not greater_is_better(name)] == [
        "ece", "false_alarm_rate", "false_alarm_rate_at_recall90", "i2t_median_rank", "t2i_median_rank",
    ]  # fmt: skip


# --- recipes and commands ---


def test_recipe_keys_are_checked() -> None:
    assert FieldMetricSettings(normal_label="good").normal_labels == ("good",)
    assert FieldMetricSettings(normal_label=["good", "ok"]).normal_labels == ("good", "ok")
    assert FieldMetricSettings().normal_labels == ()
    with pytest.raises(ConfigurationError, match="Invalid evaluation metrics 'medicine'"):
        CLIPFinetuningConfig(evaluation_metrics="medicine")
    with pytest.raises(ConfigurationError, match="names 'a' twice"):
        CLIPFinetuningConfig(label_order=["a", "b", "a"])
    with pytest.raises(ConfigurationError, match="normal_label is empty"):
        CLIPFinetuningConfig(normal_label=[])


def test_evaluate_on_domain_gives_the_fields_figures(tiny_data: Any) -> None:
    controller = CLIPFinetuningController(CLIPFinetuningConfig(model_name="tiny", domain="medical", device="cpu"))
    controller.setup()
    rows = tiny_data.pairs("test")
    found = controller.evaluate_on_domain(rows, ["macro_auroc", "balanced_accuracy", "accuracy", "ece"])
    assert list(found) == ["macro_auroc", "balanced_accuracy", "accuracy", "ece"]
    full = controller.evaluate(rows)
    assert full.metrics["macro_auroc"] == found["macro_auroc"]
    assert full.details["field"]["field"] == "medical" and "low" in full.details["field"]["metrics"]["acc1"]
    other = CLIPFinetuningController(CLIPFinetuningConfig(model_name="tiny", domain="scientific", device="cpu"))
    other.setup()
    with pytest.raises(ConfigurationError, match="Invalid metric 'macro_auroc'"):
        other.evaluate_on_domain(rows, ["macro_auroc"])


def test_evaluate_prints_and_writes_the_fields_figures(
    tiny_data: Any, tmp_path: Path, domainclip: Callable[..., Any]
) -> None:
    found = domainclip(
        "evaluate", "--model", "tiny", "--data", tiny_data.folder, "--output", tmp_path / "figures.json",
        "evaluation_metrics=industrial", "normal_label=grass", "bootstrap_resamples=100", "device=cpu",
    )  # fmt: skip
    assert found.exit_code == 0, found.err
    assert "In the terms of the field (industrial)" in found.out
    assert "image AUROC, defect or not" in found.out and "as normal_label says" in found.out
    written = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert 0 <= written["metrics"]["image_auroc"] <= 1
    assert written["details"]["field"]["metrics"]["image_auroc"]["value"] == written["metrics"]["image_auroc"]
    wrong = domainclip("evaluate", "--model", "tiny", "--data", tiny_data.folder, "device=cpu",
                       "evaluation_metrics=industrial", "normal_label=gras")  # fmt: skip
    assert wrong.exit_code == 2 and "did you mean 'grass'" in wrong.err
