"""Prompts, classification metrics and evaluators against scikit-learn, torchmetrics and plain loops."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, classification_report, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from domainclip.errors import ConfigurationError, DataError, ShapeError
from domainclip.evaluation.evaluators import DomainEvaluator, RetrievalEvaluator, ZeroShotEvaluator
from domainclip.inference.prompts import DEFAULT_TEMPLATES, class_prompts, classifier_weights
from domainclip.metrics.classification import classification_metrics, zero_shot_logits


@dataclass(frozen=True)
class Pair:
    image_path: Path
    caption: str
    label: str | None = None


class TableEmbedder:
    """Looks every embedding up, and remembers what it was asked for."""

    def __init__(self, images: dict[str, list[float]], texts: dict[str, list[float]]) -> None:
        self.images, self.texts = images, texts
        self.asked_images: list[Path] = []
        self.asked_texts: list[str] = []

    def encode_images(self, paths: list[Path], /) -> torch.Tensor:
        self.asked_images += paths
        return torch.nn.functional.normalize(torch.tensor([self.images[path.name] for path in paths]), dim=-1)

    def encode_texts(self, texts: list[str], /) -> torch.Tensor:
        self.asked_texts += texts
        return torch.nn.functional.normalize(torch.tensor([self.texts[text] for text in texts]), dim=-1)


def scores_and_targets(n: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.cat([torch.arange(classes), torch.randint(classes, (n - classes,), generator=generator)])
    scores = torch.randn(n, classes, generator=generator)
    scores[torch.arange(n), targets] += 0.8
    return scores, targets


@pytest.mark.parametrize("classes", [2, 3, 6, 20])
def test_metrics_equal_scikit_learn_and_torchmetrics(classes: int) -> None:
    scores, targets = scores_and_targets(300, classes)
    found = classification_metrics(scores, targets)
    predicted = scores.argmax(dim=1)
    table = classification_report(targets, predicted, output_dict=True, zero_division=0)
    assert found["acc1"] == pytest.approx(table["accuracy"])
    assert found["macro_f1"] == pytest.approx(table["macro avg"]["f1-score"])
    assert found["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(targets, predicted))
    assert found["per_class_recall"] == pytest.approx([table[str(c)]["recall"] for c in range(classes)])
    assert found["support"] == [table[str(c)]["support"] for c in range(classes)]
    assert found["predictions"] == predicted.tolist()
    macro = multiclass_accuracy(scores, targets, classes, average="macro")
    assert found["mean_per_class_recall"] == pytest.approx(macro.item(), abs=1e-6)
    f1 = multiclass_f1_score(scores, targets, classes, average="macro")
    assert found["macro_f1"] == pytest.approx(f1.item(), abs=1e-6)
    if classes > 5:
        expected = top_k_accuracy_score(targets, scores, k=5, labels=range(classes))
        assert found["acc5"] == pytest.approx(expected)
    else:
        assert "acc5" not in found


def test_confusion_has_true_classes_as_rows() -> None:
    found = classification_metrics(np.eye(3)[[1, 1, 2, 0]], np.array([0, 0, 2, 1]))
    assert found["confusion"] == [[0, 2, 0], [1, 0, 0], [0, 0, 1]]


def test_a_collapsed_model_is_right_about_nothing() -> None:
    found = classification_metrics(torch.zeros(12, 7), torch.arange(12) % 7)
    assert found["acc1"] == found["acc5"] == found["mean_per_class_recall"] == 0.0
    assert np.trace(found["confusion"]) == 0
    assert np.sum(found["confusion"]) == 12


def test_a_class_without_images_does_not_lower_the_means() -> None:
    found = classification_metrics(torch.eye(3)[[0, 1, 1]] + torch.tensor([0.0, 0.0, -1.0]), torch.tensor([0, 1, 0]))
    assert found["mean_per_class_recall"] == pytest.approx((0.5 + 1) / 2)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert np.isnan(found["per_class_recall"][2])
    assert found["support"] == [2, 1, 0]


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), "Expected scores"),
        (torch.zeros(3, 1), torch.zeros(3).long(), "at least two classes"),
        (torch.zeros(3, 2), torch.zeros(2).long(), "Batch size mismatch"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), r"0…1, got 0…2"),
        (torch.zeros(3, 2), torch.tensor([0, -1, 1]), "got -1"),
        (torch.zeros(3, 2), torch.zeros(3), "whole numbers"),
        (torch.full((3, 2), torch.nan), torch.zeros(3).long(), "NaN"),
    ],
)
def test_scores_that_do_not_fit_are_refused(scores: torch.Tensor, targets: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        classification_metrics(scores, targets)


def test_logits_are_cosines_of_unit_rows() -> None:
    images, weights = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(zero_shot_logits(images, weights), torch.tensor([[0.0, 1.0], [0.8, 0.6]]))
    with pytest.raises(ShapeError, match="Embedding dimension mismatch"):
        zero_shot_logits(images, torch.zeros(2, 3))


def test_prompts_fill_every_template_and_mend_the_article() -> None:
    found = class_prompts(
        ["apple", "t_shirt", "MRI scan", "CT scan"], ["a photo of a {}.", "An {}", "{} on a shelf", "the {}"]
    )
    assert found["apple"] == ["a photo of an apple.", "An apple", "apple on a shelf", "the apple"]
    assert found["t_shirt"] == ["a photo of a t shirt.", "A t shirt", "t shirt on a shelf", "the t shirt"]
    assert found["MRI scan"][0] == "a photo of an MRI scan."
    assert found["CT scan"][0] == "a photo of a CT scan."
    assert class_prompts(["apple"], ["a {}"], fix_article=False) == {"apple": ["a apple"]}
    assert class_prompts(["odd {0} name"], ["{}!"]) == {"odd {0} name": ["odd {0} name!"]}
    assert all("{}" in template for template in DEFAULT_TEMPLATES)


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        ([], ["{}"], "No class names"),
        (["a"], [], "No prompt templates"),
        (["a"], ["a photo of {label}"], "has no place for the class name"),
        (["  "], ["{}"], "is empty"),
    ],
)
def test_prompts_that_cannot_be_made(labels: list[str], templates: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        class_prompts(labels, templates)


def test_classifier_weights_normalise_average_and_normalise() -> None:
    vectors = {"p": [3.0, 4.0], "q": [0.0, 10.0], "r": [2.0, 0.0]}
    calls = []

    def encode(texts: list[str]) -> torch.Tensor:
        calls.append(texts)
        return torch.tensor([vectors[text] for text in texts])

    found = classifier_weights(encode, {"first": ["p", "q"], "second": ["r", "q"]})
    expected = []
    for names in (("p", "q"), ("r", "q")):
        mean = np.mean([np.array(vectors[name]) / np.linalg.norm(vectors[name]) for name in names], axis=0)
        expected.append(mean / np.linalg.norm(mean))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert calls == [["p", "q", "r"]]
    with pytest.raises(ConfigurationError, match="'x' has no prompts"):
        classifier_weights(encode, {"x": []})
    with pytest.raises(ShapeError, match="Batch size mismatch"):
        classifier_weights(lambda texts: torch.zeros(1, 2), {"x": ["p", "q"]})


PAIRS = [
    Pair(Path("d/1.jpg"), "a red thing", "red"),
    Pair(Path("d/2.jpg"), "A red  thing", "red"),
    Pair(Path("d/3.jpg"), "a blue thing", "blue"),
    Pair(Path("d/4.jpg"), "a green thing", None),
    Pair(Path("d/1.jpg"), "something crimson", "red"),
]


def table() -> TableEmbedder:
    return TableEmbedder(
        {"1.jpg": [1.0, 0.1], "2.jpg": [0.2, 1.0], "3.jpg": [0.1, 1.0], "4.jpg": [-1.0, 0.0]},
        {
            "a red thing": [1.0, 0.0],
            "a blue thing": [0.0, 1.0],
            "a green thing": [-1.0, 0.1],
            "something crimson": [1.0, 0.2],
            "red": [1.0, 0.0],
            "blue": [0.0, 1.0],
        },
    )


def test_zero_shot_counts_each_image_once_and_unlabelled_rows_apart() -> None:
    evaluator = ZeroShotEvaluator(PAIRS, templates=["{}"])
    result = evaluator.evaluate(table())
    found = result.details["classification"]
    assert found["labels"] == ["blue", "red"]
    assert found["image_paths"] == ["d/1.jpg", "d/2.jpg", "d/3.jpg"]
    assert found["targets"] == ["red", "red", "blue"]
    assert found["predictions"] == ["red", "blue", "blue"]
    assert result.metrics["acc1"] == pytest.approx(2 / 3)
    assert result.metrics["mean_per_class_recall"] == pytest.approx(0.75)
    assert found["per_class_recall"] == {"blue": 1.0, "red": 0.5}
    assert found["majority_fraction"] == pytest.approx(2 / 3)
    assert (found["n_unlabelled"], found["n_outside_classes"]) == (1, 0)
    assert (result.metrics["n_classified"], result.metrics["n_classes"]) == (3, 2)
    assert evaluator(table()) == result.metrics
    assert (evaluator.primary_metric, evaluator.greater_is_better) == ("acc1", True)


def test_zero_shot_classes_may_be_chosen() -> None:
    texts = table().texts | {"green": [-1.0, 0.0], "a warm colour": [1.0, 0.0]}
    embed = TableEmbedder(table().images, texts)
    pairs = [*PAIRS, Pair(Path("d/4.jpg"), "a green thing", "green")]
    narrow = ZeroShotEvaluator(pairs, ["{}"], class_names=["red", "blue"]).evaluate(embed)
    assert narrow.details["classification"]["n_outside_classes"] == 1
    assert narrow.metrics["n_classified"] == 3
    prompted = ZeroShotEvaluator(pairs, prompts={"red": ["a warm colour"], "green": ["green"]}).evaluate(embed)
    assert prompted.details["classification"]["predictions"] == ["red", "red", "green"]


def test_zero_shot_needs_two_classes_and_a_row() -> None:
    with pytest.raises(DataError, match=r"at least two classes, found 1 \('red'\)"):
        ZeroShotEvaluator(PAIRS[:2])
    with pytest.raises(DataError, match="at least two classes, found 0"):
        ZeroShotEvaluator(PAIRS[3:4])
    with pytest.raises(DataError, match="None of 5 rows has a label among the classes up, down"):
        ZeroShotEvaluator(PAIRS, class_names=["up", "down"])


def test_retrieval_joins_equal_captions_and_images_with_several() -> None:
    embed = table()
    result = RetrievalEvaluator(PAIRS, chunk=2).evaluate(embed)
    assert embed.asked_texts == ["a red thing", "a blue thing", "a green thing", "something crimson"]
    assert len(embed.asked_images) == 4
    # Image 1 has two captions, either is a hit; image 2, which looks blue, finds its own after
    # "a blue thing" and "something crimson".
    assert result.details["retrieval"]["i2t_ranks"] == [1, 3, 1, 1]
    # "a red thing" belongs to images 1 and 2 and finds image 1 first.
    assert result.details["retrieval"]["t2i_ranks"] == [1, 1, 1, 1]
    assert result.metrics["i2t_R@1"] == 0.75
    assert result.metrics["mean_R@1"] == pytest.approx(0.875)
    assert (result.metrics["n_images"], result.metrics["n_texts"]) == (4, 4)
    with pytest.raises(DataError, match="two different captions, found 2 and 1"):
        RetrievalEvaluator(PAIRS[:2])


def test_domain_evaluator_embeds_every_image_once() -> None:
    embed = table()
    evaluator = DomainEvaluator(PAIRS, templates=["{}"])
    result = evaluator.evaluate(embed)
    assert sorted(path.name for path in embed.asked_images) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert evaluator.primary_metric == "acc1"
    alone = ZeroShotEvaluator(PAIRS, ["{}"])(table()) | RetrievalEvaluator(PAIRS)(table())
    assert result.metrics == alone
    assert result.details["n_rows"] == 5


def test_domain_evaluator_says_what_it_left_out() -> None:
    unlabelled = [Pair(pair.image_path, pair.caption) for pair in PAIRS]
    evaluator = DomainEvaluator(unlabelled)
    assert evaluator.primary_metric == "mean_R@1"
    assert evaluator.evaluate(table()).details["notes"] == ["No classification: no row has a label"]
    same_caption = [Pair(pair.image_path, "a thing", pair.label) for pair in PAIRS]
    evaluator = DomainEvaluator(same_caption, ["{}"])
    assert evaluator.primary_metric == "acc1"
    assert "the rows have 4 and 1" in evaluator.notes[0]
    assert "i2t_R@1" not in evaluator(table())
    with pytest.raises(DataError, match="Nothing to evaluate"):
        DomainEvaluator([Pair(Path("a"), "one")])
    with pytest.raises(DataError, match="split is empty"):
        DomainEvaluator([])


def test_an_embedder_that_loses_rows_is_caught() -> None:
    class Short(TableEmbedder):
        def encode_images(self, paths: list[Path], /) -> torch.Tensor:
            return super().encode_images(paths)[:-1]

    with pytest.raises(ShapeError, match="Batch size mismatch: 4 images"):
        RetrievalEvaluator(PAIRS)(Short(table().images, table().texts))


def test_real_captions_with_an_oracle_that_knows_them(shared_data: Path) -> None:
    """An embedder that gives each caption its own axis, and each image its caption's, must be perfect."""
    folder = shared_data / "fixture_tiny"
    with open(folder / "test.csv", encoding="utf-8") as handle:
        pairs = [Pair(folder / row["image_path"], row["caption"], row["label"]) for row in csv.DictReader(handle)]
    captions = sorted({pair.caption for pair in pairs})
    by_path = {pair.image_path: pair.caption for pair in pairs}
    axes = dict(zip(captions, torch.eye(len(captions)), strict=True))

    class Oracle:
        def encode_images(self, paths: list[Path], /) -> torch.Tensor:
            return torch.stack([axes[by_path[path]] for path in paths])

        def encode_texts(self, texts: list[str], /) -> torch.Tensor:
            return torch.stack([axes[text] for text in texts])

    found = RetrievalEvaluator(pairs)(Oracle())
    assert found["i2t_R@1"] == found["t2i_R@1"] == found["t2i_MRR"] == 1.0
    assert (found["n_images"], found["n_texts"]) == (len(pairs), len(captions))
