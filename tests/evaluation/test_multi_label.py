"""Images with several labels: each label is evaluated for itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError, DataError
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.evaluation.multi_label import MultiLabelEvaluator
from domainclip.evaluation.protocols import EvaluationResult
from domainclip.inference.prompts import class_prompts
from domainclip.reports.run_report import write_report
from domainclip.reports.schema import RunFacts
from domainclip.reports.schema.base import jsonable

LABELS = ("edema", "effusion", "mass")
ROWS = [("edema", "effusion"), ("edema",), ("effusion",), ("mass", "edema"), ()]


class Ideal:
    """Embeds an image as the sum of its labels, and a prompt as its label; the last label is wrong where told."""

    def __init__(self, blind_to: str = "") -> None:
        self.blind_to = blind_to

    def encode_images(self, paths: list[Path]) -> torch.Tensor:
        rows = [[float(label in ROWS[int(path.stem)]) for label in LABELS] + [0.1] for path in paths]
        return torch.nn.functional.normalize(torch.tensor(rows), dim=1)

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        rows = [[float(label in text and label != self.blind_to) for label in LABELS] + [0.01] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(rows), dim=1)


def pairs() -> list[ImageTextPair]:
    return [ImageTextPair(f"{i}.png", f"caption {i}", labels=labels or None) for i, labels in enumerate(ROWS)]


def test_each_label_for_itself() -> None:
    result = MultiLabelEvaluator(pairs()).evaluate(Ideal())
    assert result.metrics["mAP"] == result.metrics["mean_auroc"] == 1
    assert result.metrics["n_classified"] == 4 and result.metrics["n_labels"] == 3
    assert result.details["n_unlabelled"] == 1
    blind = MultiLabelEvaluator(pairs()).evaluate(Ideal("effusion")).metrics
    assert blind["AUROC of edema"] == blind["AUROC of mass"] == 1 and blind["AUROC of effusion"] == 0.5
    assert blind["mean_auroc"] == pytest.approx(2.5 / 3)


def test_a_label_of_all_images_has_no_figures() -> None:
    rows = [ImageTextPair(f"{i}.png", "x", labels=("edema", *("mass",) * (i % 2))) for i in (0, 1, 3)]
    found = MultiLabelEvaluator(rows).evaluate(Ideal())
    assert found.details["without_figures"] == ["edema"] and "AP of edema" not in found.metrics
    with pytest.raises(DataError, match="No label is had by some"):
        MultiLabelEvaluator([ImageTextPair("0.png", "x", labels=("edema", "mass"))])


def test_it_takes_the_place_of_classification() -> None:
    evaluator = DomainEvaluator(pairs())
    assert evaluator.primary_metric == "mAP" and evaluator.zero_shot is None
    assert {"mAP", "i2t_R@1"} <= evaluator(Ideal()).keys()
    assert "several labels" in evaluator.notes[0]


def test_classes_of_equal_prompts_are_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"'Red Disc' and 'red_disc' have the same prompts"):
        class_prompts(["Red Disc", "bar", "red_disc"])
    assert len(class_prompts(["red disc", "red-disc"])) == 2


class Noisy:
    """Embeds an image as the sum of its labels and noise of a strength."""

    def __init__(self, labels: list[tuple[str, ...]], noise: float) -> None:
        rng = torch.Generator().manual_seed(0)
        rows = torch.tensor([[float(label in each) for label in LABELS] for each in labels])
        self.images = rows + noise * torch.randn(rows.shape, generator=rng)

    def encode_images(self, paths: list[Path]) -> torch.Tensor:
        return torch.nn.functional.normalize(self.images[[int(path.stem) for path in paths]], dim=1)

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[float(label in text) for label in LABELS] for text in texts]) + 1e-3


@pytest.mark.parametrize("grouped", [False, True])
def test_a_report_tests_the_means_over_labels_before_and_after(tmp_path, grouped) -> None:
    labels = [ROWS[i % 4] for i in range(48)]
    rows = [
        ImageTextPair(f"{i}.png", f"caption {i}", labels=each, group=f"g{i // 3}" if grouped else None)
        for i, each in enumerate(labels)
    ]
    evaluator = DomainEvaluator(rows, resamples=100)
    before, after = (evaluator.evaluate(Noisy(labels, noise)) for noise in (5.0, 0.1))
    assert before.records["mAP"].has_interval and before.records["mAP"].n_units == (16 if grouped else 48)
    kept = EvaluationResult.from_dict(json.loads(json.dumps(jsonable({**asdict(before), "sums": None}))))
    report = write_report(tmp_path, RunFacts(evaluated_on="test"), kept, after)
    change = report.comparison["mAP"]
    assert report.verdict.metric == "mAP" and report.verdict.outcome == "better"
    assert change.n == 48 and change.n_units == (16 if grouped else None) and change.low > 0 and change.gained is None
    page, details = ((tmp_path / name).read_text() for name in ("report.md", "report_details.md"))
    assert f"exchange test{' over 16 groups' if grouped else ''}, p below 0.001" in page and "48 images;" in page
    assert f"mean over labels (mAP) (bootstrap over {'16 groups' if grouped else '48 images'})" in details
    assert "label_scores" not in (tmp_path / "report.json").read_text()
