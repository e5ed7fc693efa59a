"""The micro-batch is fitted to the memory before the first step; what was predicted is compared with what was held."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from domainclip.config import CLIPFinetuningConfig
from domainclip.devices.memory import GB
from domainclip.errors import MemoryConstraintError
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from domainclip.training import Trainer
from domainclip.training.memory import model as memory_model
from domainclip.training.memory import run as run_memory
from domainclip.training.memory.model import MARGIN
from domainclip.training.memory.trace import LiveBytes
from model_zoo import save_vision_text
from tiny_data import TinyData
from training_setup import make_trainer, same, weights

pytestmark = pytest.mark.slow

MB = 2**20


def with_batch_norm(folder: Path) -> DualEncoder:
    """MobileNet and BERT, with statistics of the batch."""
    path = save_vision_text(folder / "joint", folder / "parts", vision="mobilenet")
    encoder = load_encoder(CLIPFinetuningConfig(model_name=str(path)))
    encoder.frozen_batch_norm = False
    return encoder


def first_batch(trainer: Trainer) -> dict[str, Any]:
    trainer.encoder.train()  # as in the loop: dropout keeps its masks
    trainer.sampler.set_position(0)
    return next(iter(trainer.loader))


def give(monkeypatch: pytest.MonkeyPatch, available: float, held: int = 0) -> None:
    """As if the device had so many bytes left."""
    monkeypatch.setattr(memory_model, "read_memory", lambda device: {"available_gb": available / GB})
    monkeypatch.setattr(memory_model, "held_bytes", lambda device: held)


def test_a_batch_that_fits_goes_through_whole(tiny_data: TinyData, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_data.pairs(), tmp_path)
    forecast = trainer.memory.fit(first_batch(trainer))
    assert forecast is not None and forecast.micro_batch is None and trainer.step.adaptive.step.micro_batch is None
    assert forecast.batch == 6 and "all 6 pairs at once" in forecast.reason
    assert forecast.predicted_bytes < forecast.budget_bytes


def test_the_count_is_that_of_a_real_step(tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted on 2 and 3 pairs, checked against every tensor alive in a step of 16."""
    give(monkeypatch, 8 * GB)
    for micro_batch in (None, 4):
        trainer = make_trainer(
            tiny_data.pairs(), tmp_path / str(micro_batch), batch_size=16, mini_batch_size=micro_batch
        )
        batch = first_batch(trainer)
        memory = trainer.memory._count(batch)
        trainer.encoder.train()
        constant = [*trainer.encoder.parameters(), *trainer.encoder.buffers()]
        batch_tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
        with LiveBytes([*constant, *batch_tensors]) as live:
            trainer.step.adaptive(batch)
        counted = memory.peak(micro_batch or 16, 16) - memory.weights - memory.optimizer_state - memory.overhead
        counted -= 16 * memory.input_per_pair + memory.averages
        assert counted == pytest.approx(max(now for now, *_ in live.timeline), rel=0.15)


def test_too_little_memory_means_micro_batches_of_the_same_batch(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, 8 * GB)
    reference = make_trainer(tiny_data.pairs(), tmp_path / "whole", batch_size=16)
    memory = reference.memory._count(first_batch(reference))
    give(monkeypatch, memory.peak(4, 16) * MARGIN * 1.01 / 0.8)
    trainer = make_trainer(tiny_data.pairs(), tmp_path / "micro_batches", batch_size=16)
    forecast = trainer.memory.fit(first_batch(trainer))
    assert forecast is not None and forecast.micro_batch == 4
    assert "16 pairs in micro-batches of 4" in forecast.reason
    # Half the fraction, or half the memory: a smaller micro-batch.
    less = make_trainer(tiny_data.pairs(), tmp_path / "less", batch_size=16, memory_fraction=0.79)
    reported = less.memory.fit(first_batch(less))
    assert reported is not None and reported.micro_batch is not None and reported.micro_batch < 4


def test_room_that_is_left_keeps_graphs(tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, 8 * GB)
    monkeypatch.setitem(memory_model.EFFICIENT_MICRO_BATCH, "cpu", 2)
    trainer = make_trainer(tiny_data.pairs(), tmp_path, batch_size=16)
    batch = first_batch(trainer)
    memory = trainer.memory._count(batch)
    saved = max(memory.image.saved.at(2), memory.text.saved.at(2))
    give(monkeypatch, (memory.peak(2, 16) + 3.5 * saved) * MARGIN / 0.8)
    forecast = trainer.memory.fit(batch)
    assert forecast is not None and (forecast.micro_batch, forecast.kept_micro_batches) == (2, 3)
    assert trainer.step.adaptive.step.kept_micro_batches == 3
    # A micro-batch the user has set is there to save memory: nothing is kept unless a fraction of memory is set as
    # well.
    asked = make_trainer(tiny_data.pairs(), tmp_path / "asked", batch_size=16, mini_batch_size=2)
    reported = asked.memory.fit(batch)
    assert reported is not None and (reported.micro_batch, reported.kept_micro_batches) == (2, 0)


def test_counting_leaves_no_trace(tiny_data: TinyData, tmp_path: Path) -> None:
    encoder = with_batch_norm(tmp_path)
    trainer = make_trainer(tiny_data.pairs(), tmp_path, encoder=encoder)
    trainer.encoder.train()
    batch = first_batch(trainer)
    before, random = weights(trainer), torch.get_rng_state()
    assert trainer.memory.fit(batch) is not None
    assert same(before, weights(trainer))  # the running statistics of batch norm among them
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in trainer.encoder.parameters())


def test_live_batch_norm_goes_whole_or_is_frozen(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = with_batch_norm(tmp_path)
    trainer = make_trainer(tiny_data.pairs(), tmp_path, encoder=encoder, batch_size=16)
    trainer.encoder.train()
    batch = first_batch(trainer)
    give(monkeypatch, 8 * GB)
    memory = trainer.memory._count(batch)
    give(monkeypatch, memory.peak(16, 16) * MARGIN * 1.1)  # more than the fraction, less than all
    forecast = trainer.memory.fit(batch)
    assert forecast is not None and forecast.micro_batch is None and "no micro-batches" in forecast.reason
    trainer.memory.may_freeze = True  # which it is only where there is no other way
    forecast = trainer.memory.fit(batch)
    assert forecast is not None and forecast.micro_batch is None and not forecast.frozen_batch_norm
    trainer.memory.may_freeze = False
    give(monkeypatch, memory.peak(16, 16) * 0.9)
    with pytest.raises(MemoryConstraintError, match="freeze_batch_norm=true"):
        trainer.memory.fit(batch)
    trainer.memory.may_freeze = True
    forecast = trainer.memory.fit(batch)
    assert forecast is not None and forecast.frozen_batch_norm and forecast.micro_batch is not None
    assert not any(m.training for m in encoder.modules() if isinstance(m, nn.BatchNorm2d))


def test_what_does_not_fit_at_all_is_said_before_the_first_step(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tiny_data.pairs(), tmp_path, gradient_checkpointing=False)
    give(monkeypatch, 1000)
    with pytest.raises(MemoryConstraintError, match="Even one pair at a time, of a batch of 6"):
        trainer.memory.fit(first_batch(trainer))


def test_blocks_are_recomputed_where_one_pair_would_not_fit(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tiny_data.pairs(), tmp_path)
    batch = first_batch(trainer)
    give(monkeypatch, 8 * GB)
    give(
        monkeypatch, trainer.memory._count(batch).peak(1, 6) * MARGIN * 1.1
    )  # all of it would do, the fraction does not
    forecast = trainer.memory.fit(batch)
    assert forecast is not None and forecast.checkpointed and "recomputed" in forecast.reason
    other = make_trainer(tiny_data.pairs(), tmp_path / "resumed")
    assert not other.encoder.model.vision_model.is_activation_checkpointing
    other.memory.load_state_dict(trainer.memory.state_dict() or {})
    assert other.encoder.model.vision_model.is_activation_checkpointing


def test_the_record_compares_prediction_and_measurement(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(memory_model.EFFICIENT_MICRO_BATCH, "cpu", 2)
    result = make_trainer(tiny_data.pairs(), tmp_path, mini_batch_size=4, max_steps=3).train()
    content = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    assert content == result.memory
    assert content["micro_batch"] == content["micro_batch_at_the_end"] == 4
    assert content["measured_peak_mb"] > 0 and 0 < content["predicted_mb"] < content["budget_mb"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(0 < row["memory_mb"] <= content["measured_peak_mb"] + 0.1 for row in rows if "memory_mb" in row)


def test_a_resumed_run_keeps_its_micro_batch(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, 8 * GB)
    trainer = make_trainer(tiny_data.pairs(), tmp_path)
    batch = first_batch(trainer)
    give(monkeypatch, trainer.memory._count(batch).peak(2, 6) * MARGIN * 1.05 / 0.8)
    first = make_trainer(tiny_data.pairs(), tmp_path, save_steps=2)
    first.total_steps = 2
    first.train()
    assert first.step.adaptive.step.micro_batch == 2
    give(monkeypatch, 8 * GB)  # as much as one likes: the micro-batch is the run's all the same
    second = make_trainer(tiny_data.pairs(), tmp_path, save_steps=2)
    second.train(resume=True)
    assert second.step.adaptive.step.micro_batch == 2
    assert second.memory.forecast == first.memory.forecast


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_runs_out_of_memory_now_and_then_is_the_run_that_never_did(
    seed: int, tiny_data: TinyData, tmp_path: Path
) -> None:
    """In float64 and without dropout, through the whole loop: every step once, the same weights."""
    plain = make_trainer(tiny_data.pairs(), tmp_path / "plain", encoder=make_tiny_clip().double(), num_epochs=4)
    plain.train()
    trainer = make_trainer(tiny_data.pairs(), tmp_path / "out", encoder=make_tiny_clip().double(), num_epochs=4)
    trainer.step.adaptive.patience = 3
    chance, failures = random.Random(seed), []

    def failing(encode: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*inputs: torch.Tensor) -> torch.Tensor:
            if trainer.state.step and len(inputs[0]) > 1 and chance.random() < 0.3:
                failures.append(trainer.state.step)
                raise RuntimeError("MPS backend out of memory (MPS allocated: 17.11 GB)")
            return encode(*inputs)

        return call

    inner = trainer.step.adaptive.step
    inner.encode_image, inner.encode_text = failing(inner.encode_image), failing(inner.encode_text)
    result = trainer.train()
    assert len(failures) > 2
    assert result.steps == plain.state.step == 12
    assert result.memory["changes"] and any("out of memory" in warning for warning in result.warnings)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(trainer)[name], value, rtol=0, atol=1e-9)


def test_a_step_that_nearly_fills_the_memory_has_the_allocator_give_it_back(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(run_memory, "spare_memory", lambda device: not asked.append(device))
    trainer = make_trainer(tiny_data.pairs(), tmp_path)
    batch = first_batch(trainer)
    give(monkeypatch, 8 * GB)
    forecast = trainer.memory.fit(batch)
    assert forecast is not None and not forecast.spared and not asked
    give(monkeypatch, forecast.predicted_bytes * (MARGIN + 0.05) / 0.8)
    monkeypatch.setattr(memory_model, "held_bytes", lambda device: forecast.predicted_bytes // 100)
    forecast = trainer.memory.fit(batch)
    assert forecast is not None and forecast.spared and len(asked) == 1
    make_trainer(tiny_data.pairs(), tmp_path / "resumed").memory.load_state_dict(trainer.memory.state_dict() or {})
    assert len(asked) == 2
