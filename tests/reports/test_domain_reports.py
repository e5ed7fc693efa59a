"""Inspection and science in their own terms, and what reports say of them."""

from __future__ import annotations

import csv
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from domain_cases import flat_of, scores_of, some_scores
from domain_report_cases import Noisy
from domainclip.config.domain_metric_settings import DomainMetricSettings
from domainclip.data import DatasetLoader
from domainclip.data.splits import load_splits
from domainclip.errors import ConfigurationError, ShapeError
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.metrics.domain_metrics import DomainMetrics
from domainclip.metrics.industrial import guess_normal_labels
from domainclip.metrics.scientific import cross_discipline_matrix

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
        (["not in good condition", "good", "bad"], ["good"]),
        (["normal force crack", "functional defect", "ok"], ["ok"]),
        (["no_crack", "crack", "no good"], ["no_crack"]),  # what denies another class
        (["good", "no good"], ["good"]),
        (["not without defects", "no defects"], ["no defects"]),
        (["no", "不良"], []),
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
    each = {row["label"]: row["defect_recall"].value for row in shown["per_label"] if "defect_recall" in row}
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
    assert guessed["metrics"]["image_auroc"].value != flat["image_auroc"]


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
    assert [row["recall"].value for row in shown["per_label"]] == pytest.approx(
        [right[scores.targets == n].mean() for n in range(8)]
    )
    assert shown["matrix"] is None
    assert "acc5" not in flat_of("scientific", some_scores(50, 4), bootstrap_resamples=0)[0]


def test_the_cross_discipline_matrix_by_hand() -> None:
    labels = ["basalt", "granite", "pollen"]
    predicted, truth = np.array([0, 1, 2, 2, 0, 2]), [0, 0, 1, 1, 2, 2]
    groups = ["geology/1", "geology/2", "geology/3", "geology/3", "botany/1", "botany/1"]
    scores = scores_of((np.eye(3)[predicted] * 0.7 + 0.1).tolist(), truth, labels, groups=groups)
    assert cross_discipline_matrix(scores) == {
        "disciplines": ["botany", "geology"],
        "images": [2, 4],
        "acc1": [0.5, 0.25],
        "counts": [[1, 1], [2, 2]],
        "unknown": [0, 0],
    }


def test_disciplines_from_labels_from_shared_classes_and_from_nowhere() -> None:
    rows = (np.eye(3)[[0, 1, 2, 0]] * 0.7 + 0.1).tolist()
    by_label = cross_discipline_matrix(scores_of(rows, [0, 1, 2, 2], ["rock: basalt", "rock: granite", "plant: oak"]))
    assert by_label is not None
    assert (by_label["disciplines"], by_label["counts"]) == (["plant", "rock"], [[1, 1], [0, 2]])
    shared = scores_of(rows, [0, 1, 2, 0], ["a", "b", "c"], groups=["x/1", "x/2", "x/3", "y/1"])
    found = cross_discipline_matrix(shared)
    assert found is not None and found["counts"] is None and found["images"] == [3, 1]
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
    with pytest.raises(ShapeError, match="3 disciplines for 4 images"):
        scores_of(rows, [0, 1, 2, 2], ["a", "b", "c"], disciplines=own[:3])


@pytest.mark.parametrize("where", ["table", "json", "meta"])
def test_the_discipline_column_reaches_the_matrix(tmp_path: Path, where: str) -> None:
    names = [f"{n}.png" for n in range(12)]
    for name in names:
        (tmp_path / name).write_bytes(b"never decoded here")
    of_row = ["wood" if n % 3 == 0 else "steel" for n in range(12)]
    rows = [
        {
            "image_path": name,
            "caption": f"a {Noisy.labels[n % 3]}, view {n % 4}",
            "label": Noisy.labels[n % 3],
            "group": f"g{n}",
            "discipline": of_row[n],
        }
        for n, name in enumerate(names)
    ]
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
    metrics = DomainMetrics("scientific", lambda: 0.1, DomainMetricSettings(bootstrap_resamples=0))
    result = DomainEvaluator(pairs, ["{}"], domain_metrics=metrics).evaluate(Noisy(0.1))
    assert result.details["domain_metrics"]["matrix"]["disciplines"] == ["steel", "wood"]
    assert result.details["domain_metrics"]["matrix"]["counts"] == [[8, 0], [0, 4]]
