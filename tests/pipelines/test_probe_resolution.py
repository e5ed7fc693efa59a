"""When the images of few rows are read larger, and what a run makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from domainclip import CLIPFinetuningConfig, CLIPFinetuningController
from domainclip.models.dual_encoder import DualEncoder
from domainclip.pipelines import probe_resolution
from domainclip.pipelines.probe_resolution import larger_resolution, may_be_larger
from domainclip.pipelines.run import run_training
from model_zoo import save_vision_text
from tiny_data import TinyData
from training_setup import SHORT_RUN

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return save_vision_text(folder / "mobilenet", folder / "parts", "mobilenet")


def ready(model: str | Path, **values: Any) -> CLIPFinetuningController:
    controller = CLIPFinetuningController(
        CLIPFinetuningConfig(model_name=str(model), device="cpu", **values), Console(quiet=True)
    )
    controller.setup()
    return controller


@pytest.fixture(autouse=True)
def however_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_resolution, "FEWEST_ROWS", 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, True),
        ({"image_resolution": 64}, False),
        ({"resolution_schedule": "auto"}, False),
        ({"training_resolutions": [32, 64]}, False),
    ],
)
def test_only_a_resolution_that_is_open_is_decided(convolutional: Path, values: dict[str, Any], expected: bool) -> None:
    controller = ready(convolutional, **values)
    assert may_be_larger(controller.config, controller.session) is expected


def test_a_transformer_keeps_its_resolution() -> None:
    controller = ready("tiny")
    assert not may_be_larger(controller.config, controller.session)


@pytest.mark.parametrize(
    ("larger", "expected"),
    [
        ([0.5, 0.6, 0.7, 0.8], 64),
        ([1.0, 1.0, 1.0, 1.1], 64),  # no clear loss
        ([1.2, 1.3, 1.2, 1.3], 32),
    ],
)
def test_larger_images_are_taken_unless_they_clearly_cost(
    convolutional: Path, tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch, larger: list[float], expected: int
) -> None:
    controller = ready(convolutional)
    native = controller.session.encoder.native_resolution
    assert (native, controller.session.encoder.resolution_step) == (32, 32)
    monkeypatch.setattr(probe_resolution, "SCALE", 2.0)
    asked: list[int] = []

    def surprise(resolution: int, *_: Any) -> torch.Tensor:
        asked.append(resolution)
        return torch.tensor([1.0] * 4 if resolution == native else larger)

    monkeypatch.setattr(probe_resolution, "_surprise_at", surprise)
    recipe = controller.prepare(tiny_data.pairs())
    assert asked == [32, 64]
    assert recipe.image_resolution == expected
    assert recipe.resolution_schedule == (None if expected == 32 else {0.0: 32})
    assert controller.run is not None
    reasons = {decision.key: decision.reason for decision in controller.run.decisions}
    assert "18 rows in 3 folds" in reasons["image_resolution"]
    # Asked once more the same is answered, and a run that goes on without a last fit decides nothing.
    assert controller.prepare(tiny_data.pairs()).image_resolution == expected and len(asked) == 2
    without = recipe.updated(probe_last=False)
    assert larger_resolution(without, controller.session, tiny_data.pairs()) == []


def test_deciding_leaves_the_model_as_it_was(
    convolutional: Path, tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_resolution, "SCALE", 2.0)
    controller = ready(convolutional)
    before = {name: value.clone() for name, value in controller.session.encoder.state_dict().items()}
    controller.prepare(tiny_data.pairs())
    after = controller.session.encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_run_trains_at_the_towers_resolution_and_saves_the_larger_one(
    convolutional: Path, tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "domainclip.pipelines.auto_resolution.larger_resolution",
        lambda *_: probe_resolution.at_larger(64, 32, "for a test"),
    )
    shown: set[int] = set()
    encode = DualEncoder.encode_image

    def watched(self: DualEncoder, pixel_values: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            shown.add(pixel_values.shape[-1])
        return encode(self, pixel_values)

    monkeypatch.setattr(DualEncoder, "encode_image", watched)
    values = {"model_name": str(convolutional), "data_path": str(tiny_data.folder), "output_dir": str(tmp_path / "run")}
    efforts = {"probe_steps": 5, "probe_learning_rate": 1e-3}
    outcome = run_training(CLIPFinetuningConfig(**SHORT_RUN, **values, **efforts), console=Console(quiet=True))
    assert shown == {32}
    recipe = CLIPFinetuningConfig.from_yaml(outcome.folder / "recipe.yaml")
    assert (recipe.image_resolution, recipe.resolution_schedule) == (64, {0.0: 32})
    assert ready(outcome.folder / "model").session.encoder.native_resolution == 64
