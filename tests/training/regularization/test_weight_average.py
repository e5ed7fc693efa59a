"""The mean of the weights against a plain loop, in a run, and over a resumption."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from domainclip import CLIPFinetuningConfig, CLIPFinetuningController
from domainclip.events import Event, Validated
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.training.memory.model import StepMemory
from domainclip.training.regularization.weight_average import WeightAverage, averaged
from tiny_data import TinyData

pytestmark = pytest.mark.slow


def moved(encoder: DualEncoder, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.1)


def test_it_is_the_plain_mean_first_and_then_an_exponential_one() -> None:
    encoder = make_tiny_clip(3)
    encoder.lock("text")
    average, seen, span = WeightAverage(encoder, 4.0), [], 4
    name = "visual_projection.weight"
    for step in range(1, 10):
        moved(encoder, step)
        average.update()
        seen.append(encoder.model.state_dict()[name].double().clone())
        if step <= span:
            expected = torch.stack(seen).mean(0)
        else:
            expected = expected + (seen[-1] - expected) / span
        torch.testing.assert_close(average.mean[name].double(), expected, rtol=1e-5, atol=1e-6)
    assert "text_projection.weight" not in average.mean, "a locked tower does not move, and needs no copy"
    tower: Any = None  # what passes through it does not count here
    settings = CLIPFinetuningConfig(ema_fraction=0.5)
    memory = StepMemory.of(encoder, settings, tower, tower, input_per_pair=0, overhead=0)
    assert memory.averages == sum(value.nbytes for value in average.mean.values())


def test_in_place_gives_back_the_encoders_own_weights() -> None:
    encoder = make_tiny_clip(3)
    average = WeightAverage(encoder, 10.0)
    with average.in_place():  # before any step
        pass
    for step in range(3):
        moved(encoder, step)
        average.update()
    own = {name: value.clone() for name, value in averaged(encoder).items()}
    with average.in_place():
        assert all(torch.equal(value, average.mean[name]) for name, value in averaged(encoder).items())
    assert all(torch.equal(value, own[name]) for name, value in averaged(encoder).items())
    with contextlib.suppress(RuntimeError), average.in_place():
        raise RuntimeError("in the middle")
    assert all(torch.equal(value, own[name]) for name, value in averaged(encoder).items())
    average.apply()
    assert all(torch.equal(value, average.mean[name]) for name, value in averaged(encoder).items())


def test_a_short_span_keeps_no_copy() -> None:
    encoder = make_tiny_clip(3)
    average = WeightAverage(encoder, 0.4)
    moved(encoder, 1)
    average.update()
    assert not average.mean
    before = {name: value.clone() for name, value in averaged(encoder).items()}
    average.apply()
    assert all(torch.equal(value, before[name]) for name, value in averaged(encoder).items())


def train(ema_fraction: float = 0.5, eval_steps: int = 7) -> CLIPFinetuningController:
    config = CLIPFinetuningConfig(
        model_name="tiny",
        batch_size=6,
        max_steps=12,
        num_workers=0,
        mixed_precision=False,
        probe_first=False,
        eval_steps=eval_steps,
        save_steps=5,
        num_epochs=50,
        ema_fraction=ema_fraction,
    )
    controller = CLIPFinetuningController(config)
    controller.setup()
    return controller


@pytest.mark.parametrize("validated", [True, False])
def test_a_run_saves_the_mean(validated: bool, tiny_data: TinyData, tmp_path: Path, monkeypatch) -> None:
    from domainclip.training.regularization import weight_average

    seen: list[dict[str, torch.Tensor]] = []
    update = WeightAverage.update

    def watched(self) -> None:
        update(self)
        seen.append({name: value.clone() for name, value in averaged(self.encoder).items()})

    monkeypatch.setattr(weight_average.WeightAverage, "update", watched)
    controller = train(0.99, 12)
    controller.fine_tune(tiny_data.pairs(), tiny_data.pairs("val") if validated else None, tmp_path)
    assert len(seen) == 12
    present = controller.model.model.state_dict()
    name = "visual_projection.weight"
    expected = torch.stack([weights[name] for weights in seen[:11]]).mean(0)
    expected = expected + (seen[11][name] - expected) / (0.99 * 12)
    torch.testing.assert_close(present[name], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(present[name], seen[-1][name], atol=1e-5)


def test_a_resumed_run_goes_on_with_the_mean(tiny_data: TinyData, tmp_path: Path) -> None:
    whole = train()
    whole.fine_tune(tiny_data.pairs(), tiny_data.pairs("val"), tmp_path / "whole")
    stopped = train()

    reported: list[Any] = []

    def stop(event: Event) -> None:
        if not isinstance(event, Validated):
            return
        reported.append(event)
        if len(reported) == 3:  # at step 7: after the checkpoint of step 5
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.fine_tune(tiny_data.pairs(), tiny_data.pairs("val"), tmp_path / "stopped", listeners=[stop])
    resumed = train()
    result = resumed.fine_tune(tiny_data.pairs(), tiny_data.pairs("val"), tmp_path / "stopped", resume=True)
    assert result["resumed_from"] == 5
    for name, value in whole.model.model.state_dict().items():
        torch.testing.assert_close(resumed.model.model.state_dict()[name], value, rtol=0, atol=0)
