"""Runs that end between their two ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from checkpoints import best_weights
from domainclip.config import CLIPFinetuningConfig, ModelSettings
from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from domainclip.models.io import save_encoder
from domainclip.pipelines import CLIPFinetuningController, run_training
from domainclip.pipelines.wise_ft import FIRST_ALPHAS, REFINEMENTS, initial_weights_of
from domainclip.training.regularization.initial_weights import initial_weights, weights_of
from model_zoo import save_vision_text
from report_cases import pages
from tiny_data import TinyData
from training_setup import DEFAULTS
from wise_ft_cases import embeddings, move

pytestmark = pytest.mark.slow

# --- in a run ---


def by_hand(data: TinyData, folder: Path, resume: bool = False, **values: object) -> tuple[DualEncoder, dict]:
    controller = CLIPFinetuningController(CLIPFinetuningConfig(**{**DEFAULTS, **values}), Console(quiet=True))
    controller.setup()
    result = controller.fine_tune(data.pairs(), data.pairs("val"), folder, resume=resume)
    assert controller.model is not None
    return controller.model, result


def test_a_fixed_alpha_saves_the_mean_of_the_ends(tiny_data: TinyData, tmp_path: Path) -> None:
    start = weights_of(make_tiny_clip(42))
    full, _ = by_hand(tiny_data, tmp_path / "full")
    half, result = by_hand(tiny_data, tmp_path / "half", wise_ft_alpha=0.5)
    for name, value in weights_of(half).items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (start[name] + weights_of(full)[name]) / 2)
    saved = load_encoder(ModelSettings(model_name=str(tmp_path / "half" / "model")))
    assert torch.equal(embeddings(saved)[0], embeddings(half)[0])
    assert result["trade_off"]["chosen_alpha"] == 0.5 and result["trade_off"]["points"] == []
    # Resumed after its end, nothing is averaged twice.
    again, _ = by_hand(tiny_data, tmp_path / "half", resume=True, wise_ft_alpha=0.5)
    assert torch.equal(embeddings(again)[0], embeddings(half)[0])


def test_a_second_training_starts_from_where_the_first_ended(tiny_data: TinyData, tmp_path: Path) -> None:
    controller = CLIPFinetuningController(CLIPFinetuningConfig(**DEFAULTS, wise_ft_alpha=0.0), Console(quiet=True))
    controller.setup()
    assert controller.model is not None
    move(controller.model)
    controller.session.as_loaded = False
    begun = embeddings(controller.model)
    controller.fine_tune(tiny_data.pairs(), None, tmp_path)
    assert torch.equal(embeddings(controller.model)[0], begun[0])


def test_a_model_that_was_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    save_encoder(make_tiny_clip(1), tmp_path)
    config = CLIPFinetuningConfig(model_name=str(tmp_path), wise_ft=True, wise_ft_alpha=0.5)
    controller = CLIPFinetuningController(config, Console(quiet=True))
    controller.setup()
    assert controller.model is not None
    start = initial_weights(controller.model, config)
    assert start is not None
    assert initial_weights_of(controller.config, start).keys() == controller.model.model.state_dict().keys()
    save_encoder(make_tiny_clip(2), tmp_path)
    with pytest.raises(ConfigurationError, match="other weights now than when the training started"):
        initial_weights_of(controller.config, start)


@pytest.fixture(scope="module")
def swept(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A whole run of a convolutional model whose statistics move, with the data themselves as the reference set."""
    folder = tmp_path_factory.mktemp("swept")
    path = save_vision_text(folder / "joined", folder / "parts", "mobilenet")
    values = {
        **DEFAULTS,
        "model_name": str(path),
        "retention_data": [str(tiny_data.folder)],
        "retention_rows": 9,
        "probe_first": False,
        "data_path": str(tiny_data.folder),
        "output_dir": str(folder / "run"),
    }
    del values["image_resolution"]
    return folder, run_training(CLIPFinetuningConfig(**values), console=Console(quiet=True)).report.to_dict()


def test_a_run_chooses_saves_and_tells(swept: tuple[Path, dict]) -> None:
    folder, report = swept
    run, reported = folder / "run", report["trade_off"]
    assert [p["alpha"] for p in reported["points"]][:2] == [0.0, reported["points"][1]["alpha"]]
    assert len(reported["points"]) == len(FIRST_ALPHAS) + REFINEMENTS
    assert "recomputed from 256 training images" in reported["batch_norm"]
    assert (run / "plots" / "pareto.png").is_file() and "plots/pareto.png" in pages(run)
    assert "WiSE-FT" in pages(run)
    saved = load_encoder(ModelSettings(model_name=str(run / "model")))
    ends = [load_encoder(ModelSettings(model_name=str(place))) for place in (folder / "joined", best_weights(run))]
    alpha = reported["chosen_alpha"]
    for name, value in weights_of(saved).items():
        if value.is_floating_point() and "running" not in name:
            first, last = (weights_of(end)[name] for end in ends)
            torch.testing.assert_close(value, (1 - alpha) * first + alpha * last, rtol=1e-5, atol=1e-6)
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert next(row["step"] for row in steps if "val_reference_mean" in row) == 0
    assert any("val_reference_mean" in row and "val_acc1" in row for row in steps)
    assert sum("saved_reference_mean" in row for row in steps) == 1


def test_a_resumed_run_ends_with_the_same_choice(swept: tuple[Path, dict], tiny_data: TinyData) -> None:
    folder, report = swept
    before = weights_of(load_encoder(ModelSettings(model_name=str(folder / "run" / "model"))))
    config = CLIPFinetuningConfig.from_yaml(folder / "run" / "recipe.yaml")
    again = run_training(config, resume=True, console=Console(quiet=True)).report.to_dict()
    assert again["trade_off"] == report["trade_off"]
    after = weights_of(load_encoder(ModelSettings(model_name=str(folder / "run" / "model"))))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert again["reference_sets"]["before"] == report["reference_sets"]["before"]


def test_no_validation_rows_is_an_error_before_training(tiny_data: TinyData, tmp_path: Path) -> None:
    config = CLIPFinetuningConfig(**DEFAULTS, retention_data=[str(tiny_data.folder)])
    controller = CLIPFinetuningController(config, Console(quiet=True))
    controller.setup()
    with pytest.raises(ConfigurationError, match="chosen on validation rows and there are none"):
        controller.fine_tune(
            [ImageTextPair(p.image_path, p.caption, p.label) for p in tiny_data.pairs()], None, tmp_path
        )
    assert not (tmp_path / "checkpoints").exists()
