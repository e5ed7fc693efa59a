"""Calibration: the error against torchmetrics and hand counts, the fit against known truths, the run around it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from checkpoints import best_weights
from domainclip import CLIPFinetuningConfig, CLIPFinetuningController, run_training
from domainclip.data.records import ImageTextPair
from domainclip.domains import load_domain
from domainclip.errors import ConfigurationError, ShapeError
from domainclip.evaluation.shared import SharedEmbedder
from domainclip.metrics.calibration import (
    calibration_in_words,
    calibration_summary,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from domainclip.pipelines.calibrate import calibrate
from model_zoo import save_siglip
from report_cases import pages
from tiny_data import TinyData

VALUES: dict[str, Any] = {
    "model_name": "tiny",
    "batch_size": 6,
    "num_epochs": 1,
    "learning_rate": 1e-4,
    "num_workers": 0,
    "mixed_precision": False,
    "device": "cpu",
}


def drawn(n: int, classes: int, temperature: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Similarities, and classes drawn with exactly the probabilities softmax(similarities / temperature)."""
    rng = np.random.default_rng(seed)
    similarities = rng.uniform(-0.3, 0.3, (n, classes))
    weights = np.exp(similarities / temperature)
    targets = [rng.choice(classes, p=row / row.sum()) for row in weights]
    return torch.tensor(similarities, dtype=torch.float32), torch.tensor(targets)


def nll_by_hand(similarities: Tensor, targets: Tensor, temperature: float) -> float:
    total = 0.0
    for row, target in zip(similarities.double().tolist(), targets.tolist(), strict=True):
        scaled = [value / temperature for value in row]
        top = max(scaled)
        total += top + math.log(sum(math.exp(value - top) for value in scaled)) - scaled[target]
    return total / len(targets)


@pytest.mark.parametrize("bins", [1, 7, 15, 100])
@pytest.mark.parametrize("classes", [2, 3, 40])
def test_ece_equals_torchmetrics(bins: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(bins * classes)
    logits = 3 * torch.randn(500, classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (500,), generator=generator)
    probabilities = logits.softmax(dim=1)
    expected = MulticlassCalibrationError(classes, n_bins=bins, norm="l1")(probabilities, targets)
    assert expected_calibration_error(probabilities, targets, bins) == pytest.approx(float(expected), abs=1e-6)


def test_ece_by_hand() -> None:
    # Bins (0, ½] and (½, 1]: the half belongs to the lower one.
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.45, 0.45], [0.9, 0.1, 0.0], [0.3, 0.7, 0.0]])
    targets = torch.tensor([0, 1, 0, 0])
    # Lower: confidences 0.5 (right) and 0.45 (a tie, so wrong). Upper: 0.9 (right) and 0.7 (wrong).
    expected = (2 / 4) * abs(0.5 - 0.475) + (2 / 4) * abs(0.5 - 0.8)
    assert expected_calibration_error(probabilities, targets, bins=2) == pytest.approx(expected, abs=1e-6)
    sure = torch.eye(4)
    assert expected_calibration_error(sure, torch.arange(4)) == 0
    assert expected_calibration_error(sure, torch.tensor([1, 2, 3, 0])) == 1


def test_nll_equals_a_plain_loop() -> None:
    similarities, targets = drawn(50, 4, 0.1)
    for temperature in (0.01, 0.07, 3.0):
        found = negative_log_likelihood(similarities, targets, temperature)
        assert found == pytest.approx(nll_by_hand(similarities, targets, temperature), rel=1e-9)


@pytest.mark.parametrize("truth", [0.03, 0.1, 0.5])
def test_the_temperature_the_labels_were_drawn_with_comes_back(truth: float) -> None:
    similarities, targets = drawn(3000, 4, truth)
    fitted = fit_temperature(similarities, targets, model_temperature=0.01)
    assert fitted.temperature == pytest.approx(truth, rel=0.15)
    assert fitted.problem is None
    assert fitted.n == 3000
    assert fitted.ece_after < 0.04 < fitted.ece_before
    # No temperature of a fine grid is better.
    grid = np.geomspace(0.01, 10, 400)
    best = min(nll_by_hand(similarities[:300], targets[:300], t) for t in grid)
    few = fit_temperature(similarities[:300], targets[:300], 0.01)
    assert few.nll_after <= best
    assert few.nll_after == pytest.approx(best, abs=1e-4)
    assert few.nll_before == pytest.approx(nll_by_hand(similarities[:300], targets[:300], 0.01), rel=1e-9)


def test_rows_that_determine_nothing_are_bounded_and_said() -> None:
    perfect = fit_temperature(torch.eye(3) * 0.2, torch.arange(3), 0.07)
    assert perfect.temperature == 0.01
    assert "none of the 3 rows is classified wrongly" in str(perfect.problem)
    assert fit_temperature(torch.eye(3) * 0.2, torch.arange(3), 0.004).temperature == 0.004
    wrong = fit_temperature(torch.eye(3) * 0.2, torch.tensor([1, 2, 0]), 0.07)
    assert wrong.temperature == 10
    assert "above 10" in str(wrong.problem)
    one = fit_temperature(drawn(40, 3, 0.1)[0], torch.zeros(40, dtype=torch.long), 0.07)
    assert "all 40 rows are of one class" in str(one.problem)
    alone = fit_temperature(torch.tensor([[0.1, 0.2]]), torch.tensor([1]), 0.07)
    assert alone.n == 1
    assert alone.problem is not None
    assert "collapsed" in str(fit_temperature(torch.ones(4, 3), torch.tensor([0, 1, 2, 0]), 0.07).problem)
    # One slip among rows far apart: the best temperature is finer than any that is tried.
    close = torch.cat([torch.eye(2).repeat(500, 1) * 0.1, torch.tensor([[0.001, 0.0]])])
    fine = fit_temperature(close, torch.cat([torch.arange(2).repeat(500), torch.tensor([1])]), 0.07)
    assert fine.temperature == 0.01
    assert "below 0.01" in str(fine.problem)


def test_what_does_not_fit_is_refused() -> None:
    scores, targets = drawn(5, 3, 0.1)
    with pytest.raises(ShapeError, match="Batch size mismatch"):
        fit_temperature(scores, targets[:4], 0.07)
    with pytest.raises(ShapeError, match="at least one row and two classes"):
        fit_temperature(scores[:0], targets[:0], 0.07)
    with pytest.raises(ShapeError, match="two classes"):
        fit_temperature(scores[:, :1], targets * 0, 0.07)
    with pytest.raises(ShapeError, match=r"class numbers in 0…2"):
        fit_temperature(scores, targets + 3, 0.07)
    with pytest.raises(ShapeError, match="NaN"):
        fit_temperature(scores * math.nan, targets, 0.07)
    with pytest.raises(ShapeError, match="sum to 1"):
        expected_calibration_error(scores, targets)
    with pytest.raises(ConfigurationError, match="bins must be positive"):
        expected_calibration_error(scores.softmax(1), targets, bins=0)
    with pytest.raises(ConfigurationError, match=r"^Temperature must be positive"):
        fit_temperature(scores, targets, 0.0)
    with pytest.raises(ShapeError, match="against 3 classes and the test split against 4"):
        calibration_summary((scores, targets), drawn(5, 4, 0.1), 0.07)


def test_the_summary_fits_on_validation_and_reports_the_test_split() -> None:
    val, test = drawn(300, 4, 0.1, seed=1), drawn(200, 4, 0.1, seed=2)
    found = calibration_summary(val, test, 0.02)
    fitted = fit_temperature(*val, 0.02)
    assert found["fitted_temperature"] == fitted.temperature
    assert (found["n_validation"], found["n_test"], found["n_classes"]) == (300, 200, 4)
    assert found["same_rows"] is False
    metric = MulticlassCalibrationError(4, n_bins=15, norm="l1")
    for when, temperature in (("before", 0.02), ("after", fitted.temperature)):
        assert found[f"nll_{when}"] == pytest.approx(nll_by_hand(*test, temperature), rel=1e-9)
        expected = float(metric((test[0].double() / temperature).softmax(1), test[1]))
        assert found[f"ece_{when}"] == pytest.approx(expected, abs=1e-6)
    assert found["ece_after"] < found["ece_before"]
    other = calibration_summary(val, (test[0], test[1].flip(0)), 0.02)  # the test split cannot move the fit
    assert other["fitted_temperature"] == fitted.temperature
    same = calibration_summary(val, None, 0.02)
    assert same["same_rows"] is True
    assert (same["ece_after"], same["nll_after"], same["n_test"]) == (fitted.ece_after, fitted.nll_after, 300)
    assert json.loads(json.dumps(found)) == found


def test_words() -> None:
    found = calibration_summary(drawn(300, 4, 0.1, seed=1), drawn(200, 4, 0.1, seed=2), 0.02) | {"saved": "own"}
    text = "\n".join(calibration_in_words(found))
    assert f"off by {found['ece_before']:.1%} on average" in text
    assert f"off by {found['ece_after']:.1%}" in text
    assert "on 200 test rows" in text
    assert "fitted on 300 validation rows" in text
    assert "saved model has its own temperature, 0.02." in text
    assert "Warning" not in text and "no better" not in text
    few = calibration_summary(drawn(60, 4, 0.1), None, 0.02) | {"saved": "fitted"}
    text = "\n".join(calibration_in_words(few))
    assert "fewer than 100 rows" in text
    assert "no labelled test split" in text
    assert f"the fitted temperature, {few['fitted_temperature']:.4g}." in text
    worse = calibration_summary(drawn(300, 4, 0.5), drawn(300, 4, 0.03), 0.03) | {"saved": "own"}
    assert "no better: keep the model's own" in "\n".join(calibration_in_words(worse))
    assert calibration_in_words({"skipped": "it is Sunday"}) == ["Not calibrated: it is Sunday."]
    assert calibration_in_words({}) == []


class Noisy:
    """Puts an image near its class's axis and, for one in three, near another's; counts what it embeds."""

    def __init__(self) -> None:
        self.asked: list[Path] = []

    def encode_images(self, paths: list[Path], /) -> Tensor:
        self.asked += paths
        rows = []
        for path in paths:
            name, number = path.stem.split("_")
            axis = ["brick", "grass", "sky"].index(name) + (int(number) % 3 == 0)
            rows.append(torch.eye(3)[axis % 3] + 0.05 * int(number))
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    def encode_texts(self, texts: list[str], /) -> Tensor:
        return torch.tensor([[float(label in text) for label in ("brick", "grass", "sky")] for text in texts])


def prepared(data: TinyData, **values: Any) -> CLIPFinetuningController:
    controller = CLIPFinetuningController(CLIPFinetuningConfig(**{**VALUES, **values}), Console(quiet=True))
    controller.setup()
    controller.prepare(data.pairs())
    return controller


def test_images_are_embedded_once(tiny_data: TinyData) -> None:
    embed = Noisy()
    remembered = SharedEmbedder(embed)
    paths = [pair.image_path for pair in tiny_data.pairs("val")]
    first = remembered.encode_images(paths[:3])
    again = remembered.encode_images([paths[4], paths[2], paths[2], paths[0]])
    assert embed.asked == [*paths[:3], paths[4]]
    assert torch.equal(again[1:], first[[2, 2, 0]])
    assert torch.equal(again[0], Noisy().encode_images([paths[4]])[0])


@pytest.mark.parametrize("wanted", [True, False])
def test_the_saved_model_has_the_temperature_the_report_says(wanted: bool, tiny_data: TinyData, tmp_path: Path) -> None:
    controller = prepared(tiny_data, calibrate_temperature=wanted, domain="industrial")
    assert controller.model is not None
    own = controller.model.logit_scale.item()
    weights = {name: value.clone() for name, value in controller.model.model.state_dict().items()}
    embed = SharedEmbedder(Noisy())
    found = calibrate(controller.session, tiny_data.pairs("train"), tiny_data.pairs("test"), embed, tmp_path)
    assert found is not None
    assert found["problem"] is None
    assert found["model_temperature"] == pytest.approx(math.exp(-own))
    assert (found["n_validation"], found["n_test"], found["n_classes"]) == (18, 6, 3)
    assert found["saved"] == ("fitted" if wanted else "own")
    assert (tmp_path / "model").exists() == wanted
    if wanted:
        assert load_domain(tmp_path / "model" / "domain.yaml").digest() == load_domain("industrial").digest()
        saved = load_file(tmp_path / "model" / "model.safetensors")
        assert math.exp(-saved["logit_scale"].item()) == pytest.approx(found["fitted_temperature"], rel=1e-5)
        assert saved["logit_scale"].item() != pytest.approx(own, rel=1e-3)
        for name, value in weights.items():
            assert name == "logit_scale" or torch.equal(saved[name], value), name


def test_rows_that_determine_nothing_leave_the_model_alone(tiny_data: TinyData, tmp_path: Path) -> None:
    controller = prepared(tiny_data, calibrate_temperature=True)
    right = [pair for pair in tiny_data.pairs() if int(pair.image_path.stem.split("_")[1]) % 3]
    found = calibrate(controller.session, right, tiny_data.pairs("test"), Noisy(), tmp_path)
    assert found is not None
    assert "classified wrongly" in found["problem"]
    assert found["saved"] == "own"
    assert not (tmp_path / "model").exists()


def test_what_cannot_be_calibrated_is_said(tiny_data: TinyData, tmp_path: Path) -> None:
    val, test = tiny_data.pairs("val"), tiny_data.pairs("test")
    bare = [ImageTextPair(pair.image_path, pair.caption) for pair in val]
    controller = prepared(tiny_data)
    assert calibrate(controller.session, bare, bare, Noisy(), tmp_path) is None
    for rows, others, reason in (
        (bare, test, "in the validation split"),
        ([], test, "in the validation split"),
        (val, bare, "in the test split"),
        (val[:2], [], "all of one class, 'brick'"),
    ):
        found = calibrate(controller.session, rows, others, Noisy(), tmp_path)
        assert found is not None and reason in found["skipped"]
    asked = calibrate(prepared(tiny_data, calibrate_temperature=True).session, bare, bare, Noisy(), tmp_path)
    assert asked is not None and "calibrate_temperature did nothing" in asked["skipped"]
    alone = calibrate(controller.session, val, [], Noisy(), tmp_path)
    assert alone is not None and alone["same_rows"] is True
    siglip = prepared(tiny_data, model_name=str(save_siglip(tmp_path / "siglip")), calibrate_temperature=True)
    found = calibrate(siglip.session, val, test, Noisy(), tmp_path)
    assert found is not None and "sigmoid" in found["skipped"]


def test_a_run_reports_its_probabilities(tiny_data: TinyData, tmp_path: Path) -> None:
    values = {**VALUES, "probe_last": False}  # the weights before the calibration are then those of the last checkpoint
    config = CLIPFinetuningConfig(
        **values, data_path=str(tiny_data.folder), output_dir=str(tmp_path / "run"), calibrate_temperature=True
    )
    report = run_training(config, console=Console(quiet=True)).report
    found = report.to_dict()["calibration"]
    assert (found["n_validation"], found["n_test"]) == (6, 6)
    text = pages(tmp_path / "run")
    section = text.split("## Probabilities\n")[1].split("\n## ")[0]
    assert f"off by {found['ece_before']:.1%}" in section
    assert "fewer than 100 rows" in section
    scales = {
        name: load_file(folder / "model.safetensors")["logit_scale"].item()
        for name, folder in {"best": best_weights(tmp_path / "run"), "model": tmp_path / "run" / "model"}.items()
    }
    assert math.exp(-scales["best"]) == pytest.approx(found["model_temperature"], rel=1e-5)
    saved = found["fitted_temperature"] if found["saved"] == "fitted" else found["model_temperature"]
    assert math.exp(-scales["model"]) == pytest.approx(saved, rel=1e-5)
