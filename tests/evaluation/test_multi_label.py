"""Images with several labels: each label is evaluated for itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError, DataError
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.evaluation.multi_label import MultiLabelEvaluator
from domainclip.inference.prompts import class_prompts

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
