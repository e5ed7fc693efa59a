"""Which effort is chosen, on what, and what is said of rows that were held out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.records import ImageTextPair
from domainclip.models import make_tiny_clip
from domainclip.training.probe import choice
from domainclip.training.probe.choice import EFFORTS, USUAL, candidates
from domainclip.training.probe.fit import Effort
from domainclip.training.probe.held_out import Difference, HeldOut, calibrated_surprise
from probe_cases import make_probe, read
from tiny_data import TinyData


@pytest.fixture(autouse=True)
def however_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "FEWEST_ROWS", 0)


def questions(seed: int, scale: float = 1.0) -> tuple[HeldOut, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, 5, generator=generator) * 3
    labels = torch.where(torch.rand(40, generator=generator) < 0.6, logits.argmax(1), torch.arange(40) % 5)
    return HeldOut(logits * scale, torch.nn.functional.one_hot(labels, 5).bool()), labels.numpy()


# --- what is said of rows that were held out ---


def test_surprise_is_the_log_loss_and_correct_the_accuracy() -> None:
    held, labels = questions(0)
    chances = torch.softmax(held.logits.double() * 0.4, dim=1).numpy()
    assert float(held.surprise(0.4).mean()) == pytest.approx(log_loss(labels, chances, labels=range(5)), rel=1e-12)
    assert held.correct.tolist() == (held.logits.argmax(1).numpy() == labels).tolist()


def test_several_right_answers_count_together() -> None:
    held = HeldOut(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[True, False, True]]))
    e = [math.exp(value) for value in (1, 2, 3)]
    assert float(held.surprise()) == pytest.approx(-math.log((e[0] + e[2]) / sum(e)), rel=1e-12)
    assert held.correct.tolist() == [True]


def test_calibration_takes_out_how_sure_a_model_is() -> None:
    """A temperature fitted by scikit-learn: logistic regression on the one number that the logits are scaled by."""
    (one, _), (sharper, _) = questions(1), questions(1, 7.0)
    found = calibrated_surprise([one])
    assert float(found.mean()) == pytest.approx(float(calibrated_surprise([sharper]).mean()), abs=1e-5)
    tried = [float(one.surprise(scale).mean()) for scale in np.exp(np.linspace(-4, 4, 4001))]
    assert float(found.mean()) == pytest.approx(min(tried), abs=1e-6)
    # One temperature for all parts together, and the questions in their order.
    other, _ = questions(2, 3.0)
    both = calibrated_surprise([one, other])
    tried = [float((one.surprise(s).sum() + other.surprise(s).sum()) / 80) for s in np.exp(np.linspace(-4, 4, 4001))]
    assert len(both) == 80 and float(both.mean()) == pytest.approx(min(tried), abs=1e-6)


def test_a_difference_is_a_paired_mean_with_its_error() -> None:
    first, second = torch.tensor([1.0, 2.0, 4.0, 3.0]), torch.tensor([0.5, 2.5, 3.0, 1.0])
    found, gaps = Difference.of(first, second), (first - second).numpy()
    assert found.mean == pytest.approx(gaps.mean())
    assert found.standard_error == pytest.approx(gaps.std(ddof=1) / 2)
    assert Difference.of(first[:1], second[:1]).standard_error == math.inf


# --- folds ---


def grouped(tiny_data: TinyData, size: int) -> list[ImageTextPair]:
    """The rows with groups of ``size`` rows, of one class each."""
    pairs = sorted(tiny_data.pairs(), key=lambda pair: pair.label or "")
    return [
        ImageTextPair(pair.image_path, pair.caption, pair.label, group=f"group {row // size}")
        for row, pair in enumerate(pairs)
    ]


def test_a_group_is_on_one_side_and_every_class_in_every_fold(tiny_data: TinyData) -> None:
    rows = read(make_probe(make_tiny_clip(), grouped(tiny_data, 2), tiny_data.pairs("val"))).rows
    folds = rows.folds(3, 0)
    assert len(folds) == 3
    assert torch.equal(torch.cat([held for _, held in folds]).sort().values, torch.arange(len(rows)))
    for fitted, held in folds:
        assert not set(rows.units[fitted].tolist()) & set(rows.units[held].tolist())
        assert set(fitted.tolist()) | set(held.tolist()) == set(range(len(rows)))
        assert set(rows.classes[held].tolist()) == {0, 1, 2}
    assert [held.tolist() for _, held in rows.folds(3, 0)] == [held.tolist() for _, held in folds]


def test_rows_of_one_group_are_not_divided(tiny_data: TinyData) -> None:
    reading = read(make_probe(make_tiny_clip(), grouped(tiny_data, 18), probe_steps=None, probe_learning_rate=None))
    assert reading.rows.folds(3, 0) == []
    assert reading.choose() == choice.Choice(USUAL)


def test_very_few_rows_are_not_divided(tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "FEWEST_ROWS", 19)
    reading = read(make_probe(make_tiny_clip(), tiny_data.pairs(), probe_steps=None, probe_learning_rate=None))
    assert reading.choose() == choice.Choice(USUAL)


def test_classes_of_one_row_each_can_be_divided(tiny_data: TinyData) -> None:
    pairs = [ImageTextPair(pair.image_path, pair.caption, f"class {row}") for row, pair in enumerate(tiny_data.pairs())]
    folds = read(make_probe(make_tiny_clip(), pairs)).rows.folds(3, 0)
    assert sorted(len(held) for _, held in folds) == [6, 6, 6]


# --- the choice ---


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, list(EFFORTS)),
        ({"probe_steps": 7}, [Effort(7, 3e-4), Effort(7, 1e-3)]),
        ({"probe_learning_rate": 0.5}, [Effort(100, 0.5), Effort(300, 0.5), Effort(900, 0.5)]),
        ({"probe_steps": 7, "probe_learning_rate": 0.5, "class_balance": True}, [Effort(7, 0.5, True)]),
    ],
)
def test_what_the_recipe_leaves_open(values: dict[str, Any], expected: list[Effort]) -> None:
    assert candidates(CLIPFinetuningConfig(**values)) == expected


@pytest.mark.parametrize("labelled", [True, False])
def test_the_least_surprise_is_chosen_as_in_a_plain_loop(
    tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch, labelled: bool
) -> None:
    efforts = (Effort(2, 1e-3), Effort(10, 1e-3), Effort(40, 1e-2))
    monkeypatch.setattr(choice, "EFFORTS", efforts)
    rows = [*tiny_data.pairs(), *tiny_data.pairs("val")]
    pairs = [ImageTextPair(pair.image_path, pair.caption, pair.label if labelled else None) for pair in rows]
    reading = read(make_probe(make_tiny_clip(), pairs, probe_steps=None, probe_learning_rate=None))
    means = []
    for effort in efforts:
        parts = []
        for fitted, held in reading.rows.folds(3, 42):
            reading.fit_projections(fitted, effort)
            parts.append(reading.fit_projections.held_out(held))
        means.append(float(calibrated_surprise(parts).mean()))
        correct = torch.cat([part.correct for part in parts]).double().mean()
        if means[-1] == min(means):
            accuracy = float(correct)
    found = reading.choose()
    assert found.effort == efforts[int(np.argmin(means))] and found.folds == 3
    assert (found.surprise, found.accuracy) == (pytest.approx(min(means)), pytest.approx(accuracy))


def test_rows_of_rare_classes_count_by_the_root(tiny_data: TinyData) -> None:
    pairs = [pair for pair in tiny_data.pairs() if pair.label == "brick"][:1]
    pairs += [pair for pair in tiny_data.pairs() if pair.label == "grass"][:4]
    pairs += [pair for pair in tiny_data.pairs() if pair.label == "sky"]
    fit = read(make_probe(make_tiny_clip(), pairs)).fit_projections
    weights = fit._class_weights(torch.arange(len(pairs)))
    assert weights is not None
    expected = np.array([1.0, 1 / 2, 1 / math.sqrt(6)])
    expected /= (expected * [1, 4, 6]).sum() / 11
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("recall", "accuracy", "balanced"), [(0.1, 0.0, True), (0.1, -0.01, False), (0.0, 0.1, False)])
def test_weights_of_classes_are_used_where_they_gain_and_cost_nothing(
    tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch, recall: float, accuracy: float, balanced: bool
) -> None:
    pairs = [pair for pair in tiny_data.pairs() if pair.label == "brick"][:2]
    pairs += [pair for pair in tiny_data.pairs() if pair.label != "brick"]
    reading = read(make_probe(make_tiny_clip(), pairs))
    tried: list[Effort] = []
    monkeypatch.setattr(choice, "_mean_recall", lambda parts: 0.5 + recall * tried[-1].balanced)
    fit = reading.fit_projections

    class Fit:
        classes = fit.classes

        def __call__(self, rows: torch.Tensor, effort: Effort, check: object = None) -> None:
            tried.append(effort)

        def held_out(self, rows: torch.Tensor) -> HeldOut:
            right = 0.5 + accuracy * tried[-1].balanced
            logits = torch.tensor([[1.0, 0.0]] * round(100 * right) + [[0.0, 1.0]] * round(100 * (1 - right)))
            return HeldOut(logits, torch.tensor([[True, False]] * 100))

    found = choice.choose(Fit(), reading.rows, CLIPFinetuningConfig(probe_steps=3, probe_learning_rate=0.1), 0)  # type: ignore[arg-type]
    assert found.effort == Effort(3, 0.1, balanced)
    assert {effort.balanced for effort in tried} == {False, True}


def test_no_weights_are_tried_where_classes_are_alike(tiny_data: TinyData) -> None:
    probe = make_probe(make_tiny_clip(), tiny_data.pairs(), probe_steps=3, probe_learning_rate=0.1)
    assert read(probe).choose() == choice.Choice(Effort(3, 0.1))


@pytest.mark.slowest
def test_a_probe_is_as_good_as_the_textbooks_on_the_same_rows() -> None:
    """scikit-learn's digits as features: a logistic regression whose strength is chosen by cross-validation has, within
    a standard error, the accuracy that the projections have under the class prompts."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV, train_test_split

    images, labels = load_digits(return_X_y=True)
    width = make_tiny_clip().model.visual_projection.weight.shape[1]
    features = images / 16 @ np.random.default_rng(0).normal(size=(64, width)) / 2  # as many as the tower has
    train, test, of_train, of_test = train_test_split(features, labels, train_size=500, random_state=0, stratify=labels)
    textbook = GridSearchCV(LogisticRegression(max_iter=5000), {"C": [1e-2, 1e-1, 1.0, 1e1, 1e2]}, cv=3)
    wanted = textbook.fit(train, of_train).score(test, of_test)
    found = features_probe(train, of_train, test, of_test)
    assert found >= wanted - math.sqrt(wanted * (1 - wanted) / len(of_test))


def features_probe(train: np.ndarray, of_train: np.ndarray, test: np.ndarray, of_test: np.ndarray) -> float:
    """The accuracy on ``test`` of projections chosen and fitted on ``train``, over features that are given."""
    from domainclip.losses import build_loss
    from domainclip.models.projections import ProjectionInputs, tower_projection
    from domainclip.training.probe.choice import choose
    from domainclip.training.probe.fit import ProjectionFit
    from domainclip.training.probe.rows import ClassPrompts, ProbeRows

    encoder = make_tiny_clip()
    image, text = (tower_projection(encoder, tower) for tower in ("image", "text"))
    sentences = torch.randn(10, text.layer.weight.shape[1], generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(np.concatenate([train, test]), dtype=torch.float32)
    classes = torch.tensor(np.concatenate([of_train, of_test]))
    texts = ProjectionInputs(text, sentences, None)
    rows = ProbeRows(
        ProjectionInputs(image, inputs, None),
        texts,
        classes,
        classes,
        classes,
        torch.arange(len(classes)),
        torch.ones(len(classes), dtype=torch.long),
        torch.arange(len(classes)),
        torch.zeros(len(classes), dtype=torch.bool),
    )
    fitted, held = torch.arange(len(train)), torch.arange(len(train), len(classes))
    some = {name: getattr(rows, name)[fitted] for name in ("groups", "classes", "choices", "starts", "counts", "units")}
    of_fit = ProbeRows(ProjectionInputs(image, inputs[fitted], None), texts, **some, validation=rows.validation[fitted])
    names = {"visual_projection.weight", "text_projection.weight", "logit_scale"}
    parameters = [(name, value) for name, value in encoder.model.named_parameters() if name in names]
    initial = [value.detach().clone() for _, value in parameters]
    prompts = ClassPrompts([str(digit) for digit in range(10)], texts, torch.arange(10))
    config = CLIPFinetuningConfig(loss_type="multi_positive")
    probe = ProjectionFit(encoder, build_loss(config), of_fit, prompts, parameters, initial, 0)
    found = choose(probe, of_fit, config, 0)
    probe(fitted, found.effort)
    probe.rows = rows
    return float(probe.held_out(held).correct.double().mean())
