"""Attention in whole models, and which kind a tower is given."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from attention_cases import GIB, relative_difference
from domainclip.config import CLIPFinetuningConfig, ModelSettings
from domainclip.config.settings import MemorySettings
from domainclip.errors import ConfigurationError
from domainclip.losses import CLIPContrastiveLoss
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from domainclip.models.attention import (
    BLOCK_FRACTION,
    SMALLEST_SLICE,
    AttentionDecision,
    attention_shape,
    choose_attention,
    choose_slice_size,
    decide_attention,
)
from domainclip.models.io import save_encoder
from domainclip.models.sliced_attention import register_sliced
from domainclip.training import ContrastiveStep

# --- whole models ---


@pytest.fixture
def encoders(zoo: dict[str, Path]) -> Callable[[str], DualEncoder]:
    return lambda kind: load_encoder(ModelSettings(model_name=str(zoo[kind]))).train()


def batch_for(encoder: DualEncoder, dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Tensor]]:
    """Three images, and three texts of different lengths."""
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=dtype)
    return pixels, encoder.processor.tokenize(["a photo of the red brick", "moon", "large grass texture seen from far"])


def through(encoder: DualEncoder, implementation: AttentionDecision | str) -> list[Tensor]:
    """Embeddings of both towers, and every gradient, with the inputs' own first."""
    if isinstance(implementation, AttentionDecision):
        encoder.set_attention(implementation, implementation)
    else:
        encoder.set_attention(*(AttentionDecision(implementation, None, ""),) * 2)
    encoder.zero_grad(set_to_none=True)
    pixels, texts = batch_for(encoder, encoder.dtype)
    pixels.requires_grad_()
    both = [encoder.encode_image(pixels), encoder.encode_text(**texts)]
    generator = torch.Generator().manual_seed(4)
    sum(
        (side * torch.randn(side.shape, generator=generator, dtype=torch.float64).to(side.dtype)).sum() for side in both
    ).backward()
    assert pixels.grad is not None
    grads = [value.grad.flatten() for value in encoder.model.parameters() if value.grad is not None]
    return [*(side.detach() for side in both), pixels.grad, torch.cat(grads)]


@pytest.mark.parametrize("size", [3, 7, 100])
@pytest.mark.parametrize("kind", ["clip", "siglip", "vision_text"])
def test_both_towers_are_those_of_plain_transformers(
    encoders: Callable[[str], DualEncoder], kind: str, size: int
) -> None:
    encoder = encoders(kind)
    sliced = AttentionDecision("sliced", size, "test")
    single = {name: through(encoder, name) for name in ("sdpa", "eager")}
    mine = through(encoder, sliced)
    for reference in single.values():
        assert relative_difference(mine, reference) < 1e-6
    encoder.double()
    # CLIP's own plain attention takes its softmax in float32 even then: sdpa is the reference in float64.
    assert relative_difference(through(encoder, sliced), through(encoder, "sdpa")) < 1e-10


def test_a_convolutional_tower_is_left_alone(encoders: Callable[[str], DualEncoder]) -> None:
    encoder = encoders("mobilenet")
    before = encoder.model.vision_model.config._attn_implementation
    reference = through(encoder, "sdpa")
    assert relative_difference(through(encoder, AttentionDecision("sliced", 4, "")), reference) < 1e-5
    assert encoder.model.vision_model.config._attn_implementation == before
    assert encoder.model.text_model.config._attn_implementation == "sliced_4"
    decisions = decide_attention(
        encoder, MemorySettings(), batch=8, device_type="mps", training=True, precision="fp32", memory_bytes=GIB
    )
    assert set(decisions) == {"text"}
    encoder.set_attention(**decisions)
    assert encoder.model.text_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["clip", "siglip", "vision_text", "mobilenet"])
def test_a_saved_model_does_not_name_it(encoders: Callable[[str], DualEncoder], kind: str, tmp_path: Path) -> None:
    encoder = encoders(kind)
    reference = through(encoder, AttentionDecision("sliced", 5, ""))
    save_encoder(encoder.eval(), tmp_path / "saved")
    for path in (tmp_path / "saved").glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        assert "sliced" not in json.dumps(content), path.name
    plain = AutoModel.from_pretrained(tmp_path / "saved")
    assert plain.text_model.config._attn_implementation == "sdpa"
    pixels, texts = batch_for(encoder, torch.float32)
    if kind == "siglip":
        texts.pop("attention_mask")
    with torch.no_grad():
        theirs = [
            plain.eval().get_image_features(pixel_values=pixels).pooler_output,
            plain.get_text_features(**texts).pooler_output,
        ]
    mine = [encoder.encode_image(pixels).detach(), encoder.encode_text(**texts).detach()]
    assert relative_difference(mine, theirs) < 1e-5
    assert len(reference) == 4


def test_micro_batches_of_a_batch_with_dropout_are_replayed_through_it() -> None:
    """GradCache computes each micro-batch twice, and its blocks three times: all with the same numbers."""
    encoder = make_tiny_clip(attention_dropout=0.3).double().train()
    encoder.set_attention(*(AttentionDecision("sliced", 4, ""),) * 2)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(6, 3, 32, 32, generator=generator, dtype=torch.float64)
    texts = encoder.processor.tokenize(["moon", "red brick", "grass", "sky seen from far", "sand", "a small brick"])
    loss = CLIPContrastiveLoss()
    batch = {"pixels": pixels, **texts, "caption_index": torch.arange(6), "group_ids": torch.arange(6)}

    def gradients() -> list[Tensor]:
        found = [value.grad.clone() for value in encoder.parameters() if value.grad is not None]
        encoder.zero_grad(set_to_none=True)
        return found

    torch.manual_seed(11)
    images = torch.cat([encoder.encode_image(part) for part in pixels.split(2)])
    parts = zip(texts["input_ids"].split(2), texts["attention_mask"].split(2), strict=True)
    words = torch.cat([encoder.encode_text(*part) for part in parts])
    loss(images, words, group_ids=torch.arange(6), logit_scale=encoder.logit_scale)["loss"].backward()
    reference = gradients()
    step = ContrastiveStep(
        encoder.encode_image,
        encoder.encode_text,
        lambda x, y, g: loss(x, y, group_ids=g, logit_scale=encoder.logit_scale),
        contextlib.nullcontext,
        torch.device("cpu"),
        2,
    )
    torch.manual_seed(11)
    step(batch)
    assert relative_difference(gradients(), reference) < 1e-9
    torch.manual_seed(12)
    step(batch)
    assert relative_difference(gradients(), reference) > 1e-3  # dropout was really on


@pytest.mark.parametrize("kind", ["clip", "siglip", "vision_text"])
def test_in_bfloat16_it_errs_as_plain_attention_does(encoders: Callable[[str], DualEncoder], kind: str) -> None:
    encoder = encoders(kind)
    sliced = AttentionDecision("sliced", 6, "")
    exact = through(encoder, "sdpa")
    with torch.autocast("cpu", torch.bfloat16):
        mine, plain = through(encoder, sliced), through(encoder, "eager")
    rounding = relative_difference(plain, exact)
    assert 1e-4 < rounding < 0.1  # it was on
    # The gradients of keys and values are summed over the blocks in bfloat16 besides.
    assert relative_difference(mine, exact) < 2 * rounding


# --- the choice ---


def choose(tokens: int, device: str, **options: Any) -> AttentionDecision:
    given = {"training": True, "precision": "fp32", "memory_bytes": 8 * GIB, "batch": 16, "heads": 12, **options}
    return choose_attention(tokens, device_type=device, **given)


def test_auto_says_what_and_why() -> None:
    for device in ("cpu", "cuda"):
        decision = choose(577, device)
        assert (decision.name, decision.slice_size) == ("sdpa", None)
        assert "fused" in decision.reason
    assert choose(577, "cuda", dropout=0.1).name == "sdpa"
    assert "dropout" in choose(577, "cpu", dropout=0.1).reason
    assert choose(196, "cpu", dropout=0.1).name == "sdpa"

    decision = choose(197, "mps")
    assert decision.name == "sliced"
    assert "MPS has no fused backward pass" in decision.reason
    assert "28.4 MiB" in decision.reason  # 16 × 12 × 197² × 4 bytes
    assert choose(196, "mps").name == "sdpa"
    assert choose(577, "mps", training=False).name == "sdpa"

    # Whole layers are computed again anyhow: one matrix at a time, which fits, or does not.
    assert choose(577, "mps", checkpointed=True, batch=1).name == "sdpa"
    assert choose(577, "mps", checkpointed=True, batch=64).name == "sliced"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_causal_tower_never_meets_apples_leaking_kernel(precision: str) -> None:
    for options in ({}, {"training": False}, {"choice": "sdpa"}):
        decision = choose(77, "mps", causal=True, precision=precision, **options)
        assert decision.name == "eager"
        assert "later tokens" in decision.reason
    assert choose(400, "mps", causal=True, precision=precision).name == "sliced"  # which is given its mask
    assert choose(77, "mps", causal=True).name == "sdpa"
    assert choose(77, "mps", causal=False, precision=precision).name == "sdpa"
    assert choose(77, "cuda", causal=True, precision=precision).name == "sdpa"


def test_what_is_set_is_done() -> None:
    for choice in ("sdpa", "sliced", "eager"):
        decision = choose(50, "cpu", choice=choice)
        assert decision.name == choice
        assert f"attention={choice} is set" in decision.reason
    assert choose(577, "mps", slice_size=9).slice_size == 9
    assert choose(577, "cuda", slice_size=9).slice_size is None
    assert choose(577, "cuda", choice="sliced", slice_size=9).implementation == "sliced_9"


@pytest.mark.parametrize("tokens", [50, 77, 197, 577, 1025, 1600])
@pytest.mark.parametrize("memory", [GIB // 64, GIB, 16 * GIB])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_slices_fill_their_fraction_and_no_more(tokens: int, memory: int, precision: str) -> None:
    size, reason = choose_slice_size(tokens, 8, 16, precision, memory)
    assert 1 <= size <= tokens
    blocks = math.ceil(tokens / size)
    assert f"{blocks} block(s) of {size} queries" in reason
    each = 8 * 16 * tokens * (13 if precision == "fp32" else 12)
    if size > SMALLEST_SLICE:
        assert size * each <= memory * BLOCK_FRACTION
    if blocks > 1:  # one block fewer would not have fitted
        assert math.ceil(tokens / (blocks - 1)) > max(SMALLEST_SLICE, memory * BLOCK_FRACTION // each)
        assert tokens - (blocks - 1) * size > size - blocks  # the last one is hardly smaller than the others
    if size * each > memory * BLOCK_FRACTION:
        assert "more than" in reason


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 0}, {"heads": -1}, {"memory_bytes": -1}, {"slice_size": 0}, {"precision": "int8"}, {"choice": "flash"}],
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        choose(577, "mps", **wrong)


@pytest.mark.parametrize("kind", ["clip", "siglip", "vision_text"])
@torch.no_grad()
def test_a_towers_shape_is_that_of_what_goes_through_it(encoders: Callable[[str], DualEncoder], kind: str) -> None:
    encoder = encoders(kind)
    pixels, texts = batch_for(encoder, torch.float32)
    vision = encoder.model.vision_model
    shape = attention_shape(vision)
    assert shape is not None
    assert shape.tokens == vision(pixel_values=pixels).last_hidden_state.shape[1]
    larger = torch.randn(1, 3, 48, 48)
    shape = attention_shape(vision, resolution=48)
    assert shape is not None
    assert shape.tokens == vision(pixel_values=larger, interpolate_pos_encoding=True).last_hidden_state.shape[1]
    length = texts["input_ids"].shape[1]
    shape = attention_shape(encoder.model.text_model, text_length=length)
    assert shape is not None
    assert (shape.tokens, shape.heads) == (length, encoder.model.text_model.config.num_attention_heads)


def test_an_encoders_towers_are_decided_one_by_one() -> None:
    encoder = make_tiny_clip(image_size=128, patch_size=8, attention_dropout=0.1)  # 257 tokens

    def decide(**options: Any) -> dict[str, AttentionDecision]:
        given = {"batch": 4, "device_type": "mps", "training": True, "precision": "bf16", "memory_bytes": GIB}
        return decide_attention(encoder, MemorySettings(**options.pop("settings", {})), **{**given, **options})

    assert {side: decision.name for side, decision in decide().items()} == {"image": "sliced", "text": "eager"}
    assert {decision.name for decision in decide(precision="fp32", resolution=64).values()} == {"sdpa"}
    assert decide(device_type="cpu")["image"].name == "sliced"  # its dropout
    assert decide(settings={"gradient_checkpointing": True})["image"].name == "sdpa"
    decisions = decide(settings={"attention": "sliced", "attention_slice_size": 11})
    encoder.set_attention(**decisions)
    assert encoder.model.vision_model.config._attn_implementation == "sliced_11"
    assert encoder.model.text_model.config._attn_implementation == "sliced_11"
    assert register_sliced() == "sliced"
    encoder.model.vision_model.set_attn_implementation("sliced")  # by its plain name, without a decision
    assert encoder.encode_image(torch.randn(1, 3, 128, 128)).shape == (1, 32)


def test_the_recipe_says_which() -> None:
    assert CLIPFinetuningConfig().attention == "auto"
    assert CLIPFinetuningConfig(attention="sliced", attention_slice_size=64).attention_slice_size == 64
    with pytest.raises(ConfigurationError, match="Invalid attention 'flash'"):
        CLIPFinetuningConfig(attention="flash")
    with pytest.raises(ConfigurationError, match="attention_slice_size=64 needs attention=sliced or auto"):
        CLIPFinetuningConfig(attention="eager", attention_slice_size=64)
