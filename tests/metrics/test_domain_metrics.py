"""The domain metrics against scikit-learn, torchmetrics, plain loops and small cases worked by hand."""

from __future__ import annotations

from itertools import pairwise

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

from domain_cases import flat_of, rows_of, scores_of, some_scores
from domainclip.config.domain_metric_settings import DomainMetricSettings
from domainclip.errors import ConfigurationError, ShapeError
from domainclip.metrics.bootstrap import Figures, of_those_left
from domainclip.metrics.class_scores import ClassScores
from domainclip.metrics.domain_metrics import DomainMetrics
from domainclip.metrics.domain_part import positions_in_order, with_kappa
from domainclip.metrics.industrial import industrial_part
from domainclip.metrics.medical import medical_part
from domainclip.metrics.scientific import scientific_part
from domainclip.metrics.sums import retrieval_sums, sums_of_scores
from domainclip.metrics.threshold_curves import THRESHOLD_FIGURES, ThresholdCurves, threshold_figures


def drawn(n: int, resamples: int = 12, seed: int = 1) -> tuple[list[np.ndarray], np.ndarray]:
    rows = [np.random.default_rng([seed, index]).integers(n, size=n) for index in range(resamples)]
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
    for index, part in enumerate(rows):
        expected = threshold_figures(scores[part], positive[part])
        assert {name: found[name][index] for name in found} == pytest.approx(expected)


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


def test_a_sharp_temperature_does_not_turn_sure_images_into_ties() -> None:
    """At CLIP's 0.01 both first images are of class a with a probability that rounds to 1."""
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


def parts_of(name: str, scores: ClassScores) -> list[Figures]:
    if name == "medical":
        return list(with_kappa(medical_part(scores), scores, [f"class {n}" for n in (2, 0, 1, 3)]).panels)
    if name == "industrial":
        return list(industrial_part(scores, ["class 1", "class 2"]).panels)
    if name == "defects alone":
        return list(industrial_part(scores).panels)
    return [*scientific_part(scores).panels, sums_of_scores(scores, ("acc5",))]


@pytest.mark.parametrize("name", ["medical", "industrial", "defects alone", "scientific"])
def test_resampled_panels_equal_panels_of_the_rows_drawn(name: str) -> None:
    scores = some_scores(60)
    rows, counts = drawn(60)
    for position, panel in enumerate(parts_of(name, scores)):
        found = panel.resampled(counts)
        assert {key for key in found if not key[0].endswith(of_those_left(""))} == panel.values.keys()
        for index, part in enumerate(rows):
            expected = parts_of(name, rows_of(scores, part))[position].values
            for key in panel.values:
                # A mean over labels is also there over those the resample has; they differ only where one lacks.
                left = found.get((of_those_left(key[0]), key[1]), found[key])
                assert left[index] == pytest.approx(expected[key], nan_ok=True), key
                assert np.isnan(found[key][index]) or found[key][index] == pytest.approx(left[index])


def test_retrieval_panel_by_hand_and_resampled() -> None:
    hits = np.array([[0, 0], [1, 0], [2, 1], [3, 2]])  # two images have the first caption
    panel = retrieval_sums([1, 2, 4, 1], [1, 3, 11], hits, ["i2t_R@1", "t2i_R@1", "i2t_MRR", "t2i_MRR"])
    assert panel.values == {
        ("i2t_R@1", None): 0.5,
        ("t2i_R@1", None): pytest.approx(1 / 3),
        ("i2t_MRR", None): pytest.approx((1 + 1 / 2 + 1 / 4 + 1) / 4),
        ("t2i_MRR", None): pytest.approx((1 + 1 / 3 + 1 / 11) / 3),
    }
    # Image 0 twice, 1 and 2 once, 3 not at all: the first caption counts 3/2, the second 1, the third 0.
    found = panel.resampled(np.array([[2.0, 1, 1, 0]]))
    assert found["i2t_MRR", None][0] == pytest.approx((2 + 1 / 2 + 1 / 4) / 4)
    assert found["t2i_MRR", None][0] == pytest.approx((1.5 + 1 / 3) / 2.5)


def test_hits_at_ten_is_left_out_where_ten_candidates_make_it_certain() -> None:
    hits = np.stack([np.arange(12), np.arange(12) % 10], axis=1)
    panel = retrieval_sums(np.arange(1, 13) % 10 + 1, np.arange(2, 12), hits, ["i2t_R@10", "t2i_R@10"])
    assert panel is not None and list(panel.values) == [("t2i_R@10", None)]  # ten captions, twelve images
    assert panel.values["t2i_R@10", None] == pytest.approx(9 / 10)
    with pytest.raises(ShapeError, match="hits"):
        retrieval_sums([1, 1], [1, 1], np.array([[0, 0], [1, 0]]), ["i2t_R@1"])


def test_medical_figures_equal_torchmetrics_and_scikit_learn() -> None:
    scores = some_scores(200, 5)
    flat, shown = flat_of("medical", scores, bootstrap_resamples=20, label_order=list(scores.labels))
    logits, truth = torch.from_numpy(scores.log_probabilities), torch.from_numpy(scores.targets)
    odds = np.stack([scores.log_odds([index]) for index in range(5)], axis=1)
    each = multiclass_auroc(logits.exp(), truth, 5, average=None)
    assert [row["auroc"].value for row in shown["per_label"]] == pytest.approx(each.tolist(), abs=1e-6)
    assert flat["macro_auroc"] == pytest.approx(each.mean().item(), abs=1e-6)
    auprc = [average_precision_score(scores.targets == index, odds[:, index]) for index in range(5)]
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
    assert ill["images"] == 2
    assert ill["auroc"].value == 0.75  # three of four pairs in order
    assert ill["auprc"].value == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert (ill["sensitivity_at_youden"].value, ill["specificity_at_youden"].value) == (0.5, 1.0)
    assert flat["acc1"] == 0.75 and flat["mean_per_class_recall"] == 0.75
    assert flat["ece"] == pytest.approx((0.1 + 0.7 + 0.4 + 0.1) / 4)  # .9, .7 (wrong), .6 and .9: each sure in its bin


@pytest.mark.parametrize("order", [("mild", "moderate", "severe"), ("severe", "mild", "moderate")])
def test_quadratic_kappa_follows_the_order_of_ordinal_classes(order: tuple[str, ...]) -> None:
    labels = ["severe", "mild", "moderate"]
    truth = np.array([0, 0, 1, 1, 2, 2, 2, 1])
    predicted = np.array([0, 1, 1, 2, 2, 0, 2, 1])
    scores = scores_of((np.eye(3)[predicted] * 0.7 + 0.1).tolist(), truth.tolist(), labels)
    flat, _ = flat_of("medical", scores, bootstrap_resamples=0, label_order=list(order))
    names = np.array(labels)
    expected = cohen_kappa_score(
        [order.index(name) for name in names[truth]],
        [order.index(name) for name in names[predicted]],
        weights="quadratic",
    )
    assert flat["quadratic_kappa"] == pytest.approx(expected)


def test_ordinal_classes_may_be_more_than_the_rows_have_and_not_fewer() -> None:
    assert positions_in_order(["b", "d"], ["a", "b", "c", "d"]).tolist() == [1, 3]
    with pytest.raises(ConfigurationError, match=r"lacks the class 'severe' \(it has 'sever'\)"):
        positions_in_order(["mild", "severe"], ["mild", "sever"])


def test_no_kappa_without_an_order_and_no_calibration_error_of_a_sigmoid() -> None:
    scores = some_scores()
    flat, _ = flat_of("medical", scores, bootstrap_resamples=0)
    assert "quadratic_kappa" not in flat and "ece" in flat
    shown = DomainMetrics("medical", lambda: 1.0, DomainMetricSettings(bootstrap_resamples=0), sigmoid=True).score(
        scores, None
    )
    assert "ece" not in shown["metrics"] and any("sigmoid" in note for note in shown["notes"])
