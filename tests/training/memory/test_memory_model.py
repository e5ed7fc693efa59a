"""The prediction of a step's memory: its counts against real runs, its line against lines that are known."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import MemoryConstraintError
from domainclip.losses import MultiPositiveContrastiveLoss
from domainclip.losses.objective import WHOLE_MATRIX
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.models.lora import attach_lora
from domainclip.training.memory import trace as memory_trace
from domainclip.training.memory.model import largest_micro_batch, loss_bytes
from domainclip.training.memory.plan import ModelShape, plan_step
from domainclip.training.memory.trace import Lines, LiveBytes, TowerMemory, trace_tower
from domainclip.training.optim.optimizer import build_optimizer
from domainclip.training.step.gradcache import ContrastiveStep
from model_zoo import save_siglip, save_vision_text

pytestmark = pytest.mark.slow

DEEP = {"layers": 5, "width": 64, "heads": 4, "projection_dim": 24, "text_length": 32}


def recipe(**values: Any) -> CLIPFinetuningConfig:
    return CLIPFinetuningConfig(
        **{"image_resolution": 32, "max_sequence_length": 16, "precision": "fp32", "ema_fraction": 0.0, **values}
    )


def shape_of(encoder: DualEncoder) -> ModelShape:
    return ModelShape("test", encoder.model.config, encoder.processor)


def saved_bytes(forward: Callable[[], Tensor], excluded: list[Tensor]) -> int:
    """What autograd says it keeps, each storage once: another way to count than the traces'."""
    known = {tensor.untyped_storage().data_ptr() for tensor in excluded}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = forward()  # until the count is read: a freed storage's address may be another's next
        total = sum(sizes.values())
    del kept
    return total


# --- a tower's trace ---


def trace_mlp(width: int, hidden: int, *, trained: bool = True) -> TowerMemory:
    with FakeTensorMode():
        tower = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)).requires_grad_(trained)
        return trace_tower(tower, lambda pairs: tower(torch.zeros(pairs, width)), contextlib.nullcontext)


@pytest.mark.parametrize("pairs", [1, 7, 1000])
def test_an_mlp_counted_by_hand(pairs: int) -> None:
    width, hidden = 10, 200
    memory = trace_mlp(width, hidden)
    weights = 4 * (2 * width * hidden + hidden + width)
    assert memory.gradients == weights
    # After the forward pass: the input, the ReLU's output (its input is freed), and the result itself.
    assert memory.saved.at(pairs) == 4 * pairs * (width + hidden + width)
    # Backward, the most is held when the gradient behind the ReLU is made: beside it the one before, the ReLU's
    # output, input, result and its gradient, and the second layer's gradients; or at the end, when all gradients are
    # complete, beside input, result, its gradient and the hidden layer's.
    second_layer = 4 * (hidden * width + width)
    assert memory.first.at(pairs) == max(
        4 * pairs * (3 * width + 3 * hidden) + second_layer, 4 * pairs * (3 * width + hidden) + weights
    )
    # Once more beside complete gradients: new ones live only until they are added.
    assert memory.again.at(pairs) == max(
        4 * pairs * (3 * width + 3 * hidden),
        4 * pairs * (3 * width + 2 * hidden) + second_layer,
        4 * pairs * (3 * width + hidden) + 4 * (width * hidden + hidden),
    )


def test_a_locked_tower_keeps_nothing_but_its_embeddings() -> None:
    memory = trace_mlp(10, 200, trained=False)
    assert memory.gradients == 0
    assert memory.saved.at(5) == 4 * 5 * 10


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "lora": {"lora_r": 4},
    "bf16": {"precision": "bf16"},
    "all": {"precision": "bf16", "lora_r": 4, "gradient_checkpointing": True},
    "locked": {"lock_image": True},
}


def test_lines_hold_at_other_numbers_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = shape_of(make_tiny_clip(**{**DEEP, "layers": 2}))
    usual = plan_step(shape, *[recipe()] * 3, "cpu")
    monkeypatch.setattr(memory_trace, "SIZES", (5, 17))  # through() goes exactly through both
    other = plan_step(shape, *[recipe()] * 3, "cpu")
    for side in ("image", "text"):
        for name in ("saved", "first", "again"):
            for pairs in (5, 17):
                assert getattr(getattr(usual, side), name).at(pairs) == getattr(getattr(other, side), name).at(pairs)


def test_lines_are_the_maximum_of_all_moments() -> None:
    found = Lines.through([10 + 2 * 1, 4 + 2 * 3, 5 + 2 * 1], [10 + 3 * 1, 4 + 3 * 3, 5 + 3 * 1])
    assert found.lines == ((10.0, 1.0), (4.0, 3.0))
    assert [found.at(pairs) for pairs in (1, 3, 10)] == [11, 13, 34]


def test_operations_that_depend_on_the_pairs_are_told_by_their_peaks() -> None:
    """As many layers as pairs: moments have no counterpart, and what is held must not be told too low."""
    with FakeTensorMode():
        layer = nn.Linear(4, 4)

        def encode(pairs: int) -> Tensor:
            result = torch.zeros(pairs, 4)
            for _ in range(pairs):
                result = layer(result)
            return result

        memory = trace_tower(layer, encode, contextlib.nullcontext)
        for pairs in (2, 3):
            with LiveBytes(layer.parameters()) as live:
                encode(pairs).backward(torch.ones(pairs, 4))
            layer.zero_grad()
            assert live.peak <= memory.first.at(pairs) <= live.peak + memory.gradients
    with pytest.raises(MemoryConstraintError, match="differ in their operations"):
        Lines.through([1, 2], [1, 2, 3])


# --- against steps that run ---


def encoders(folder: Path) -> dict[str, Callable[[], DualEncoder]]:
    from domainclip.config.settings import ModelSettings
    from domainclip.models import load_encoder

    def load(path: Path) -> DualEncoder:
        return load_encoder(ModelSettings(model_name=str(path)))

    return {
        "clip": lambda: make_tiny_clip(**DEEP),
        "siglip": lambda: load(save_siglip(folder / "siglip")),
        "joined": lambda: load(save_vision_text(folder / "joined", folder / "parts")),
        "convolutional": lambda: load(save_vision_text(folder / "joined", folder / "parts", "mobilenet")),
    }


def prepared(encoder: DualEncoder, settings: CLIPFinetuningConfig) -> DualEncoder:
    from domainclip.models.checkpoint_blocks import checkpoint_blocks

    if settings.lora_r is not None:
        attach_lora(encoder, settings, 0)
    checkpoint_blocks(encoder.model, bool(settings.gradient_checkpointing))
    return encoder.train()


def real_peak(encoder: DualEncoder, settings: CLIPFinetuningConfig, micro_batch: int, batch: int) -> int:
    """Bytes alive at most in a second step, beside weights, optimizer state and the batch."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, 32, 32, generator=generator)
    data = {
        "pixels": torch.zeros(batch, 3, 32, 32, dtype=torch.uint8),
        "input_ids": torch.ones(batch, settings.max_sequence_length, dtype=torch.long),
        "attention_mask": torch.ones(batch, settings.max_sequence_length, dtype=torch.long),
        "caption_index": torch.arange(batch),
        "group_ids": torch.arange(batch),
    }
    loss = MultiPositiveContrastiveLoss()

    def contrast(images: Tensor, texts: Tensor, groups: Tensor) -> dict[str, Any]:
        return loss(images, texts, group_ids=groups, logit_scale=encoder.logit_scale)

    dtype = {"fp32": None, "bf16": torch.bfloat16}[settings.precision or "fp32"]
    step = ContrastiveStep(
        lambda rows: encoder.encode_image(pixels[: len(rows)] + rows),
        encoder.encode_text,
        contrast,
        lambda: torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext(),
        torch.device("cpu"),
        micro_batch,
    )
    optimizer = build_optimizer(encoder, settings, torch.device("cpu"))
    step(data)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    held = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    state_bytes = sum(value.numel() * value.element_size() for value in held)
    with LiveBytes([*encoder.parameters(), *encoder.buffers(), *held, *data.values(), pixels]) as live:
        step(data)
    return live.peak + state_bytes


CASES = [
    ("clip", "plain", 48, 48),
    ("clip", "plain", 8, 48),
    ("clip", "checkpointing", 16, 48),
    ("clip", "lora", 16, 48),
    ("clip", "bf16", 16, 48),
    ("clip", "all", 48, 48),
    ("siglip", "plain", 16, 48),
    ("joined", "plain", 48, 48),
    ("joined", "checkpointing", 16, 48),
    ("convolutional", "plain", 16, 48),
    ("convolutional", "lora", 48, 48),
]


@pytest.mark.parametrize(("kind", "variant", "micro_batch", "batch"), CASES)
def test_the_predicted_peak_is_that_of_a_real_step(
    kind: str, variant: str, micro_batch: int, batch: int, tmp_path: Path
) -> None:
    if "lora_r" in VARIANTS[variant]:
        pytest.importorskip("peft")
    settings = recipe(**VARIANTS[variant])
    encoder = encoders(tmp_path)[kind]()
    memory = plan_step(shape_of(encoder), *[settings] * 3, "cpu")
    encoder = prepared(encoder, settings)
    inputs = batch * memory.input_per_pair
    predicted = memory.peak(micro_batch, batch) - memory.weights - inputs
    assert memory.weights == sum(t.numel() * t.element_size() for t in [*encoder.parameters(), *encoder.buffers()])
    assert predicted == pytest.approx(real_peak(encoder, settings, micro_batch, batch), rel=0.15)


@pytest.mark.parametrize("kind", ["clip", "siglip", "joined", "convolutional"])
def test_what_is_saved_is_what_autograd_says(kind: str, tmp_path: Path) -> None:
    encoder = encoders(tmp_path)[kind]()
    memory = plan_step(shape_of(encoder), *[recipe()] * 3, "cpu")
    encoder.train()
    pixels, ids = torch.zeros(6, 3, 32, 32), torch.ones(6, 16, dtype=torch.long)
    weights = [*encoder.parameters(), *encoder.buffers()]
    for tower, forward in (
        (memory.image, lambda: encoder.encode_image(pixels)),
        (memory.text, lambda: encoder.encode_text(ids, torch.ones_like(ids))),
    ):
        # The trace also holds what no backward pass asks for: the embeddings, outputs that the model hands back.
        assert tower.saved.at(6) == pytest.approx(saved_bytes(forward, weights), rel=0.1)


def test_each_trick_lowers_the_figure() -> None:
    pytest.importorskip("peft")
    shape = shape_of(make_tiny_clip(**{**DEEP, "layers": 2}))
    plain, checkpointed, bf16, lora = (
        plan_step(shape, *[recipe(**VARIANTS[name])] * 3, "cpu") for name in ("plain", "checkpointing", "bf16", "lora")
    )
    assert checkpointed.peak(64, 256) < plain.peak(64, 256)
    assert bf16.peak(256, 256) < plain.peak(256, 256)
    assert lora.peak(1, 2) < plain.peak(1, 2)
    assert lora.optimizer_state < plain.optimizer_state / 2
    adafactor = plan_step(shape, *[recipe(optimizer="adafactor")] * 3, "cpu")
    assert adafactor.optimizer_state < plain.optimizer_state / 10
    assert plan_step(shape, *[recipe(image_resolution=64)] * 3, "cpu").peak(16, 64) > plain.peak(16, 64)


# --- what fits ---


def test_the_largest_micro_batch_keeps_the_budget() -> None:
    def peak(micro_batch: int) -> int:
        return 100 + 10 * micro_batch

    assert largest_micro_batch(peak, 100 + 10 * 48, 48) == 48
    assert largest_micro_batch(peak, 100 + 10 * 48 - 1, 48) == 32
    assert largest_micro_batch(peak, 110, 48) == 1
    assert largest_micro_batch(peak, 110, 1) == 1
    with pytest.raises(MemoryConstraintError, match="single pair"):
        largest_micro_batch(peak, 109, 48)


def test_the_loss_holds_rows_not_the_matrix() -> None:
    assert loss_bytes(100) == 10 * 100 * 100 * 4
    assert loss_bytes(8 * WHOLE_MATRIX) < 10 * (8 * WHOLE_MATRIX) ** 2 * 4 / 10
    assert loss_bytes(100, chunk_size=10) == 10 * 10 * 100 * 4
