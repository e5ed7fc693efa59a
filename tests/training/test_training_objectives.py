"""Every objective, the temperature schedules, hard negatives and learned metrics, through the loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checkpoints import best_weights
from domainclip.config import CLIPFinetuningConfig, parse_overrides
from domainclip.errors import ConfigurationError
from domainclip.events import Validated
from domainclip.losses import LOSSES, TemperatureScheduler, build_loss
from domainclip.models import make_tiny_clip
from domainclip.pipelines import CLIPFinetuningController
from domainclip.resolve import ModelFacts
from domainclip.training.step.views import view_resolutions
from training_setup import make_trainer, same, weights

pytestmark = pytest.mark.slow

RECIPES: dict[str, dict[str, Any]] = {
    "contrastive": {"loss_type": "contrastive"},
    "multi_positive": {"loss_type": "multi_positive"},
    "sigmoid": {"loss_type": "sigmoid"},
    "hard_negative": {"loss_type": "hard_negative", "hard_negative_mining_strategy": "weighted"},
    "domain_specific": {"loss_type": "domain_specific", "domain": "scientific"},
    "multi_scale": {"loss_type": "multi_scale"},
    "multi_resolution": {"loss_type": "multi_resolution"},
    "combined": {"loss_type": "combined", "objectives": {"contrastive": 1.0, "sigmoid": 0.1}},
    "uncertainty": {
        "loss_type": "combined",
        "objectives": {"contrastive": 1.0, "hard_negative": 1.0},
        "loss_balancing": "uncertainty",
    },
    "gradient_norm": {
        "loss_type": "combined",
        "objectives": {"contrastive": 1.0, "sigmoid": 1.0},
        "loss_balancing": "gradient_norm",
    },
    "bilinear": {"loss_type": "multi_positive", "similarity_metric": "bilinear"},
    "euclidean": {"loss_type": "multi_positive", "similarity_metric": "euclidean"},
    "scheduled": {"temperature_scheduling": True, "temperature_schedule_type": "cosine"},
    "adaptive": {"temperature_scheduling": True, "temperature_schedule_type": "adaptive"},
}


def test_every_registered_objective_is_tried_here() -> None:
    assert set(LOSSES) <= {recipe.get("loss_type") for recipe in RECIPES.values()}


def built(name: str, config: CLIPFinetuningConfig) -> nn.Module:
    return build_loss(config, make_tiny_clip().embedding_dim)


def trainer_for(name: str, tiny_data, folder: Path, **values: Any):
    recipe = {**RECIPES[name], **values}
    return make_trainer(tiny_data.pairs(), folder, loss=built(name, CLIPFinetuningConfig(**recipe)), **recipe)


@pytest.mark.parametrize("name", RECIPES)
def test_every_objective_learns_and_logs_numbers(name: str, tiny_data, tmp_path: Path) -> None:
    trainer = trainer_for(name, tiny_data, tmp_path, num_epochs=8, learning_rate=2e-3)
    result = trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert result.steps == 24
    first, last = (sum(row["loss"] for row in part) / 6 for part in (rows[:6], rows[-6:]))
    if name != "scheduled":  # there the same embeddings cost another loss at another temperature
        assert last < first
    assert all(isinstance(value, int | float) for row in rows for value in row.values())


@pytest.mark.parametrize("name", ["sigmoid", "uncertainty", "gradient_norm", "bilinear", "scheduled", "adaptive"])
def test_an_objective_with_a_memory_resumes_exactly(name: str, tiny_data, tmp_path: Path) -> None:
    whole = trainer_for(name, tiny_data, tmp_path / "whole", num_epochs=3)
    whole.train()
    part = trainer_for(name, tiny_data, tmp_path / "part", num_epochs=3)
    seen = 0
    take = part.step.update

    def stop_after_five(batch: dict, step: int) -> Any:
        nonlocal seen
        seen += 1
        if seen == 6:
            raise KeyboardInterrupt
        return take(batch, step)

    part.step.update = stop_after_five  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        part.train()
    again = trainer_for(name, tiny_data, tmp_path / "part", num_epochs=3)
    assert again.train(resume=True).resumed_from == 4
    assert same(weights(again), weights(whole))
    for key, value in whole.step.loss.state_dict().items():
        kept = again.step.loss.state_dict()[key]
        assert torch.equal(kept, value) if isinstance(value, Tensor) else kept == value
    if whole.step.temperature:
        assert again.step.temperature.get_state() == whole.step.temperature.get_state()


def test_hard_negatives_are_sought_between_epochs_and_survive_a_crash(tiny_data, tmp_path: Path) -> None:
    neighbours = torch.tensor([[(row + 1) % 18, (row + 2) % 18] for row in range(18)])
    asked: list[int] = []

    def make(folder: Path, log: list[int]):
        trainer = make_trainer(tiny_data.pairs(), folder, num_epochs=3, hard_negative_batch_fraction=0.5)

        def find_hard_negatives() -> Tensor:
            log.append(trainer.state.epoch)
            return neighbours

        trainer.find_hard_negatives = find_hard_negatives
        return trainer

    whole = make(tmp_path / "whole", asked)
    whole.train()
    assert asked == [1, 2]
    part = make(tmp_path / "part", [])
    take, seen = part.step.update, []

    def stop_in_the_second_epoch(batch: dict, step: int) -> Any:
        seen.append(batch["rows"])
        if len(seen) == 6:
            raise KeyboardInterrupt
        return take(batch, step)

    part.step.update = stop_in_the_second_epoch  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        part.train()
    resumed: list[int] = []
    again = make(tmp_path / "part", resumed)
    assert again.train(resume=True).resumed_from == 4
    assert resumed == [2]  # epoch 1 goes on with the neighbours it had
    assert same(weights(again), weights(whole))


def test_hard_negatives_from_the_recipe(tiny_data, tmp_path: Path) -> None:
    controller = CLIPFinetuningController(
        CLIPFinetuningConfig(
            model_name="tiny",
            batch_size=6,
            num_epochs=3,
            hard_negative_batch_fraction=0.5,
            num_workers=0,
            mixed_precision=False,
            output_dir=str(tmp_path / "run"),
            positives="caption",
        )
    )
    controller.setup()
    assert controller.fine_tune(tiny_data.pairs())["steps"] == 9


def test_the_schedule_sets_the_models_temperature(tiny_data, tmp_path: Path) -> None:
    trainer = trainer_for("scheduled", tiny_data, tmp_path, temperature=0.07, min_temp=0.02)
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = TemperatureScheduler(0.07, 0.02, 0.1, 0, 6, "cosine")
    for position, row in enumerate(rows):
        assert row["temperature"] == pytest.approx(expected.step(position), rel=1e-5)
    assert not trainer.encoder.logit_scale.requires_grad


def test_a_learned_metric_ends_up_in_the_weights(tiny_data, tmp_path: Path) -> None:
    """Validation during training, the saved model and plain transformers all use the learned metric."""
    config = CLIPFinetuningConfig(
        model_name="tiny",
        batch_size=6,
        num_epochs=6,
        similarity_metric="bilinear",
        loss_type="multi_positive",
        learning_rate=1e-3,
        num_workers=0,
        mixed_precision=False,
        eval_steps=3,
        probe_first=False,
    )
    controller = CLIPFinetuningController(config)
    controller.setup()
    seen: list[Any] = []
    result = controller.fine_tune(tiny_data.pairs(), tiny_data.pairs("val"), tmp_path, listeners=[seen.append])
    kept = next(v for v in reversed(seen) if isinstance(v, Validated) and v.value == result["best"]["value"])
    assert controller.evaluate(tiny_data.pairs("val")).metrics.items() <= kept.metrics.items()

    best = best_weights(tmp_path)
    state = torch.load(best / "loss.pt", weights_only=True)
    learned = state["similarity.weight"]
    assert not torch.allclose(learned, torch.eye(len(learned)))
    from safetensors.torch import load_file

    before = load_file(best / "model.safetensors")["text_projection.weight"]
    after = load_file(tmp_path / "model" / "model.safetensors")["text_projection.weight"]
    torch.testing.assert_close(after, learned @ before)


def test_other_sizes_of_a_clip_are_those_of_transformers() -> None:
    encoder = make_tiny_clip().eval()
    pixels = torch.randn(2, 3, 16, 16)
    theirs = encoder.model.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
    assert torch.equal(encoder.encode_image(pixels), theirs)
    assert view_resolutions(encoder, 32, (1.0, 0.5, 0.3, 0.01)) == [32, 16, 8, 8]


def test_several_sizes_need_a_tower_that_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from domainclip.models import position_embeddings

    monkeypatch.delitem(position_embeddings._SCHEMES, "clip_vision_model")
    encoder = make_tiny_clip()
    with pytest.raises(ConfigurationError, match="32 pixels only"):
        view_resolutions(encoder, 32, (1.0, 0.5))
    assert view_resolutions(encoder, 32, (1.0,)) == [32]


def test_a_model_of_the_sigmoid_kind_is_trained_with_it() -> None:
    from domainclip.resolve import DataFacts, resolve

    model = ModelFacts(224, 64, True, "transformer", "transformer", 0.1, sigmoid=True)
    data = DataFacts(100, 0.5, 0.0, 0, False, 2)
    run = resolve(CLIPFinetuningConfig(), model, data)
    recipe, decisions = run.recipe, list(run.decisions)
    assert recipe.loss_type == "sigmoid"
    assert any(decision.key == "loss_type" and "pretrained" in decision.reason for decision in decisions)


def test_a_schedule_excludes_a_learned_temperature() -> None:
    from domainclip.resolve import DataFacts, resolve

    model, data = ModelFacts(224, 77, False, "transformer", "transformer", 0.2), DataFacts(100, 0, 0, 0, False, 2)
    recipe = resolve(CLIPFinetuningConfig(temperature_scheduling=True), model, data).recipe
    assert not recipe.learnable_temp
    assert recipe.temperature == recipe.max_temp  # the model's .2 is above it
    with pytest.raises(ConfigurationError, match=r"temp_warmup_steps=999 is more than the steps .* \(90\)"):
        resolve(CLIPFinetuningConfig(temperature_scheduling=True, temp_warmup_steps=999), model, data)
    with pytest.raises(ConfigurationError, match=r"temperature=0.5 is outside min_temp=0.01 … max_temp=0.1"):
        resolve(CLIPFinetuningConfig(temperature_scheduling=True, temperature=0.5), model, data)
    with pytest.raises(ConfigurationError, match="exclude each other"):
        resolve(CLIPFinetuningConfig(temperature_scheduling=True, learnable_temp=True), model, data)


def test_label_smoothing_is_taken_back_aloud_for_the_sigmoid_objective() -> None:
    from domainclip.resolve import DataFacts, resolve

    model, data = ModelFacts(224, 77, False, "transformer", "transformer", 0.07), DataFacts(100, 0, 0, 0, False, 2)
    run = resolve(CLIPFinetuningConfig(loss_type="sigmoid", label_smoothing=0.1), model, data)
    recipe, decisions = run.recipe, list(run.decisions)
    assert recipe.label_smoothing == 0
    assert any(decision.key == "label_smoothing" for decision in decisions)
    kept = resolve(CLIPFinetuningConfig(loss_type="contrastive", label_smoothing=0.1), model, data).recipe
    assert kept.label_smoothing == 0.1


@pytest.mark.parametrize(
    "text", ["contrastive:1,sigmoid:0.5", "{contrastive:1,sigmoid:0.5}", "{contrastive: 1, sigmoid: 0.5}"]
)
def test_objectives_can_be_typed_with_and_without_spaces(text: str) -> None:
    config = CLIPFinetuningConfig(**parse_overrides([f"objectives={text}"]))
    assert config.objectives == {"contrastive": 1.0, "sigmoid": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("contrastive", "'contrastive' has no weight: write contrastive:1"),
        ("contrastive:-1", "the weight of 'contrastive' must be positive"),
        ("contrastive:much", "Objectives must be a valid number"),
    ],
)
def test_objectives_without_a_weight_are_told(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CLIPFinetuningConfig(**parse_overrides([f"objectives={text}"]))
