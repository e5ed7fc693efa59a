"""Settings of domain metrics are used or said to be unused, and no row takes a figure away without a word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from domain_cases import flat_of, scores_of, some_scores
from domainclip.errors import ConfigurationError
from domainclip.evaluation.protocols import EvaluationResult
from domainclip.metrics.industrial import normal_classes
from domainclip.metrics.scientific import cross_discipline_matrix
from domainclip.reports.schema.run import DomainFigures
from domainclip.reports.sections import domain_tables
from report_cases import pages, write_run

DOMAINS = ("medical", "industrial", "scientific", "general")


@pytest.mark.parametrize("domain", DOMAINS)
def test_label_order_gives_kappa_in_any_domain(domain: str) -> None:
    scores = some_scores()
    order = ["class 2", "class 0", "class 3", "class 1"]
    flat, shown = flat_of(domain, scores, label_order=order, bootstrap_resamples=30)
    place = np.array([order.index(label) for label in scores.labels])
    expected = cohen_kappa_score(place[scores.targets], place[scores.predictions], weights="quadratic")
    assert flat["quadratic_kappa"] == pytest.approx(expected)
    assert shown["metrics"]["quadratic_kappa"].low <= expected <= shown["metrics"]["quadratic_kappa"].high
    assert "quadratic_kappa" not in flat_of(domain, scores, bootstrap_resamples=0)[0]
    with pytest.raises(ConfigurationError, match="label_order lacks the class 'class 1'"):
        flat_of(domain, scores, label_order=order[:3])


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_normal_label_that_means_nothing_is_said(domain: str) -> None:
    _, shown = flat_of(domain, some_scores(), normal_label="class 0", bootstrap_resamples=0)
    message = [note for note in shown["notes"] if note.startswith("normal_label is not used")]
    assert len(message) == (domain != "industrial")


def test_one_of_several_normal_labels_may_be_absent_but_not_in_silence() -> None:
    scores = replace(some_scores(classes=3), labels=("good", "functional", "crack"))
    assert normal_classes(scores.labels, ["good", "functionl"]) == ["good"]
    for name, message in (
        ("functionl", "'functionl', which is no class of these rows; if 'functional' was meant, it counts as a defect"),
        ("variant", "'variant', which is no class of these rows"),
    ):
        _, shown = flat_of("industrial", scores, normal_label=["good", name], bootstrap_resamples=0)
        assert any(note.startswith(f"normal_label names {message}") for note in shown["notes"])
    _, shown = flat_of("industrial", scores, normal_label=["good", "functional"], bootstrap_resamples=0)
    assert not any("no class of these rows" in note for note in shown["notes"])


def test_images_without_a_discipline_are_left_out_of_the_matrix_and_counted() -> None:
    rows = (np.eye(3)[[0, 1, 2, 0, 2]] * 0.7 + 0.1).tolist()
    scores = scores_of(rows, [0, 1, 2, 2, 1], ["a", "b", "c"], disciplines=["geo", "geo", "bio", "bio", None])
    assert cross_discipline_matrix(scores) == {
        "disciplines": ["bio", "geo"],
        "images": [2, 2],
        "acc1": [0.5, 1.0],
        "counts": [[1, 1], [0, 2]],
        "unknown": [0, 0],
    }
    _, shown = flat_of("scientific", scores, bootstrap_resamples=0)
    assert "left out of the matrix: 1 of 5 images, without a discipline" in shown["notes"]


def test_answers_without_a_discipline_have_a_column_of_their_own(tmp_path: Path) -> None:
    rows = (np.eye(4)[[3, 1, 2, 2]] * 0.6 + 0.1).tolist()
    scores = scores_of(rows, [0, 1, 2, 2], list("abcd"), disciplines=["geo", "geo", "bio", "bio"])
    flat, shown = flat_of("scientific", scores, bootstrap_resamples=0)
    assert (shown["matrix"]["counts"], shown["matrix"]["unknown"]) == ([[2, 0], [0, 1]], [0, 1])
    write_run(tmp_path, {"after": EvaluationResult.of(flat, {"domain_metrics": shown})})
    text = pages(tmp_path)
    assert "| taken for a class of no known discipline | accuracy |" in text
    assert "| geo | 2 | 0 | 1 | 1 | 50.0% |" in text and "occurs in several" not in text


def test_a_matrix_kept_by_an_earlier_version_is_still_shown() -> None:
    matrix = {"disciplines": ["a", "b"], "images": [1, 1], "acc1": [1.0, None], "counts": [[1, 0], [0, 1]]}
    (found,) = domain_tables(DomainFigures.from_values({"domain": "general", "metrics": {}, "matrix": matrix}))
    assert found.rows == [["a", "1", "1", "0", "100.0%"], ["b", "1", "0", "1", "—"]]
