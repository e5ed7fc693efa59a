"""The recipe's choice of attention reaches both towers of a run, and changes no number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from domainclip import CLIPFinetuningConfig, CLIPFinetuningController
from tiny_data import TinyData

pytestmark = pytest.mark.slow


def trained(data: TinyData, folder: Path, **values: object) -> tuple[CLIPFinetuningController, float]:
    config = CLIPFinetuningConfig(
        model_name="tiny",
        batch_size=6,
        max_steps=4,
        num_workers=0,
        mixed_precision=False,
        learning_rate=1e-3,
        probe_first=False,
        **values,
    )
    controller = CLIPFinetuningController(config)
    controller.setup()
    return controller, controller.fine_tune(data.pairs(), None, folder)["final_loss"]


@pytest.mark.parametrize("choice", ["sdpa", "eager", "sliced"])
def test_the_recipes_attention_is_used_and_gives_the_same_training(
    choice: str, tiny_data: TinyData, tmp_path: Path
) -> None:
    plain, expected = trained(tiny_data, tmp_path / "plain")
    extra = {"attention_slice_size": 4} if choice == "sliced" else {}
    controller, loss = trained(tiny_data, tmp_path / choice, attention=choice, **extra)
    assert controller.model is not None and plain.model is not None
    for tower in (controller.model.model.vision_model, controller.model.model.text_model):
        assert tower.config._attn_implementation.startswith(choice)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(controller.model.state_dict()[name], value, rtol=1e-3, atol=2e-5)
