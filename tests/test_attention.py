"""Sliced attention equals plain attention in every direction, keeps no matrix, and is chosen for stated reasons."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel

from domainclip.config import CLIPFinetuningConfig, ModelSettings
from domainclip.config.slices import MemorySettings
from domainclip.errors import ConfigurationError
from domainclip.losses import CLIPContrastiveLoss
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from domainclip.models.attention import (
    BLOCK_SHARE,
    SMALLEST_SLICE,
    AttentionDecision,
    attention_shape,
    choose_attention,
    choose_slice_size,
    decide_attention,
)
from domainclip.models.checkpoint_blocks import checkpoint_options
from domainclip.models.sliced_attention import register_sliced, sliced_attention
from domainclip.training import ContrastiveStep
from model_zoo import save_siglip, save_vision_text

BATCH, HEADS, TOKENS, DIM = 2, 3, 37, 8
GIB = 2**30


def inputs(dtype: torch.dtype, tokens: int = TOKENS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, HEADS, tokens, DIM)
    # The same numbers in every format.
    return [torch.randn(shape, generator=generator).bfloat16().to(dtype).requires_grad_() for _ in range(3)]


def masks(tokens: int = TOKENS) -> dict[str, Tensor | None]:
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(BATCH, 1, tokens, tokens)
    padding = torch.ones(BATCH, 1, 1, tokens, dtype=torch.bool)
    padding[1, ..., tokens // 2 :] = False
    added = torch.randn(BATCH, 1, tokens, tokens, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {"none": None, "causal": causal, "padding": padding, "both": causal & padding, "added": added}


def by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The definition, one query at a time, as [batch, queries, heads, dim]."""
    tokens = query.shape[2]
    rows = []
    for row in range(tokens):
        scores = (query[:, :, row, None] * key).sum(-1) / math.sqrt(query.shape[-1])  # [batch, heads, keys]
        if mask is not None:
            part = mask.expand(BATCH, 1, tokens, tokens)[:, :, row]
            scores = scores.where(part, -math.inf) if part.dtype == torch.bool else scores + part
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        rows.append((weights[..., None] * value).sum(2))
    return torch.stack(rows, dim=1)


def results(output: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """The output, and the gradient of a sum of it with uneven weights."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return [output.detach(), *torch.autograd.grad((output * weights.to(output.dtype)).sum(), leaves)]


def relative_difference(mine: list[Tensor], reference: list[Tensor]) -> float:
    """The largest among the tensors, each as the norm of the difference by the norm of the reference."""
    return max(
        float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(mine, reference, strict=True)
    )


@pytest.mark.parametrize("kind", ["none", "causal", "padding", "both", "added"])
@pytest.mark.parametrize("slice_size", [1, 5, 16, TOKENS, 64])
def test_slices_equal_the_definition_both_ways(kind: str, slice_size: int) -> None:
    mask = masks()[kind]
    leaves = inputs(torch.float64)
    reference = results(by_hand(*leaves, mask), leaves)
    mine, weights = sliced_attention(nn.Module(), *leaves, mask, slice_size=slice_size)
    assert weights is None
    assert mine.is_contiguous()
    assert relative_difference(results(mine, leaves), reference) < 1e-12
    single = inputs(torch.float32)
    mask = mask.float() if kind == "added" and mask is not None else mask
    mine, _ = sliced_attention(nn.Module(), *single, mask, scaling=DIM**-0.5, slice_size=slice_size)
    assert relative_difference(results(mine, single), reference) < 1e-6


def test_a_causal_caller_without_a_mask_is_obeyed() -> None:
    leaves = inputs(torch.float64)
    mine, _ = sliced_attention(nn.Module(), *leaves, None, is_causal=True, slice_size=8)
    assert relative_difference(results(mine, leaves), results(by_hand(*leaves, masks()["causal"]), leaves)) < 1e-12


def test_a_row_that_may_look_nowhere_is_finite() -> None:
    mask = torch.ones(BATCH, 1, TOKENS, TOKENS, dtype=torch.bool)
    mask[0, :, 3] = False
    leaves = inputs(torch.float32)
    mine, _ = sliced_attention(nn.Module(), *leaves, mask, slice_size=8)
    assert all(bool(value.isfinite().all()) for value in results(mine, leaves))


@pytest.mark.parametrize("unknown", ["position_bias", "softcap"])
def test_what_it_does_not_compute_is_refused(unknown: str) -> None:
    with pytest.raises(ConfigurationError, match=unknown):
        sliced_attention(nn.Linear(1, 1), *inputs(torch.float32), None, **{unknown: torch.zeros(1)})


# --- dropout ---


def test_one_block_draws_the_dropout_of_plain_attention() -> None:
    leaves = inputs(torch.float64)
    torch.manual_seed(5)
    weights = F.dropout(torch.softmax(leaves[0] @ leaves[1].mT / math.sqrt(DIM), dim=-1), 0.4)
    reference = results((weights @ leaves[2]).transpose(1, 2), leaves)
    torch.manual_seed(5)
    mine, _ = sliced_attention(nn.Module(), *leaves, None, dropout=0.4, slice_size=TOKENS)
    assert relative_difference(results(mine, leaves), reference) < 1e-12


def test_recomputed_blocks_drop_what_they_dropped() -> None:
    """Against the same blocks with their graphs kept."""
    leaves = inputs(torch.float64)
    torch.manual_seed(5)
    blocks = [
        F.dropout(torch.softmax(rows @ leaves[1].mT / math.sqrt(DIM), dim=-1), 0.4) @ leaves[2]
        for rows in leaves[0].split(8, dim=2)
    ]
    after = torch.get_rng_state()
    reference = results(torch.cat(blocks, dim=2).transpose(1, 2), leaves)
    torch.manual_seed(5)
    mine, _ = sliced_attention(nn.Module(), *leaves, None, dropout=0.4, slice_size=8)
    assert relative_difference(results(mine, leaves), reference) < 1e-12
    assert torch.equal(torch.get_rng_state(), after)  # the second time takes no numbers of its own


@pytest.mark.parametrize("covered", [True, False])
def test_a_device_whose_random_state_torch_forgets_is_covered(monkeypatch: pytest.MonkeyPatch, covered: bool) -> None:
    """MPS (pytorch issue 127676), acted by the CPU: torch's own replay of the generator is off."""
    module = importlib.import_module("domainclip.models.sliced_attention")

    def forgetful(*arguments: Any, preserve_rng_state: bool, **options: Any) -> Any:
        assert preserve_rng_state
        return checkpoint(*arguments, preserve_rng_state=False, **options)

    monkeypatch.setattr(torch.mps, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.mps, "set_rng_state", torch.set_rng_state)
    monkeypatch.setattr(module, "checkpoint", forgetful)
    if covered:
        monkeypatch.setattr(module, "checkpoint_options", lambda _: checkpoint_options(torch.device("mps")))
    leaves = inputs(torch.float64)
    torch.manual_seed(5)
    blocks = [
        F.dropout(torch.softmax(rows @ leaves[1].mT / math.sqrt(DIM), dim=-1), 0.4) @ leaves[2]
        for rows in leaves[0].split(8, dim=2)
    ]
    reference = results(torch.cat(blocks, dim=2).transpose(1, 2), leaves)
    torch.manual_seed(5)
    mine, _ = sliced_attention(nn.Module(), *leaves, None, dropout=0.4, slice_size=8)
    difference = relative_difference(results(mine, leaves), reference)
    assert difference < 1e-12 if covered else difference > 0.1


# --- memory ---


def kept_bytes(compute: Any) -> tuple[int, int, Tensor]:
    """All bytes that wait for the backward pass, the largest storage among them, and the output."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = compute()
    return sum(storages.values()), max(storages.values()), output


def peak_bytes(compute: Any) -> int:
    """The most that was allocated at one time, counted by torch's own allocator."""
    with profile(profile_memory=True) as record:
        compute()
    present = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            present += event.nbytes()
            most = max(most, present)
    return most


def test_no_matrix_waits_for_the_backward_pass() -> None:
    tokens = 256
    leaves = inputs(torch.float32, tokens)
    each = leaves[0].numel() * 4
    matrix = BATCH * HEADS * tokens**2 * 4
    sliced, largest, _ = kept_bytes(lambda: sliced_attention(nn.Module(), *leaves, None, slice_size=32)[0])
    assert largest == each
    assert sliced <= 4 * each  # queries (scaled), keys, values
    plain, _, _ = kept_bytes(lambda: torch.softmax(leaves[0] @ leaves[1].mT, dim=-1) @ leaves[2])
    assert plain >= matrix


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_block_takes_what_was_foretold(precision: str, dtype: torch.dtype, dropout: float) -> None:
    tokens, memory = 1024, 40 * 2**20
    leaves = inputs(dtype, tokens)
    size, _ = choose_slice_size(tokens, BATCH, HEADS, precision, memory, dropout > 0)
    assert size < tokens / 4

    def compute() -> None:
        output, _ = sliced_attention(nn.Module(), *leaves, None, dropout=dropout, slice_size=size)
        output.sum().backward()

    compute()
    whole = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    peak = peak_bytes(compute)  # gradients, outputs and the scaled queries come on top of the block
    assert 0.7 * memory * BLOCK_SHARE < peak <= memory * BLOCK_SHARE + 3 * whole


class Operations(TorchDispatchMode):
    """The names of the operations that reach the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["none", "causal flag", "causal", "added", "dropout"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_auto_believes_of_sdpa_on_the_cpu(kind: str, dtype: torch.dtype) -> None:
    tokens = 256
    leaves = inputs(dtype, tokens)
    mask = masks(tokens).get(kind)
    if mask is not None and kind == "added":
        mask = mask.to(dtype)
    matrix = BATCH * HEADS * tokens**2 * dtype.itemsize
    with Operations() as seen:
        kept, _, output = kept_bytes(
            lambda: F.scaled_dot_product_attention(
                *leaves, mask, dropout_p=0.1 if kind == "dropout" else 0.0, is_causal=kind == "causal flag"
            )
        )
        output.sum().backward()
    fused = {
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    } <= seen.names
    decision = choose_attention(tokens, BATCH, HEADS, "cpu", True, "fp32", GIB, dropout=0.1 * (kind == "dropout"))
    if kind == "dropout":
        assert not fused
        assert kept > 2 * matrix
        assert decision.name == "sliced"
    else:
        assert fused
        assert kept < matrix
        assert decision.name == "sdpa"


# --- whole models ---


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("attention")
    make_tiny_clip(7).save(base / "clip")
    return {
        "clip": base / "clip",
        "siglip": save_siglip(base / "siglip"),
        "vision_text": save_vision_text(base / "vision_text", base / "parts"),
        "mobilenet": save_vision_text(base / "mobilenet", base / "parts", "mobilenet"),
    }


@pytest.fixture
def encoders(folders: dict[str, Path]) -> Callable[[str], DualEncoder]:
    return lambda kind: load_encoder(ModelSettings(model_name=str(folders[kind]))).train()


def batch_for(encoder: DualEncoder, dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Tensor]]:
    """Three pictures, and three texts of different lengths."""
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
    encoder.eval().save(tmp_path / "saved")
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


def test_chunks_of_a_batch_with_dropout_are_replayed_through_it() -> None:
    """GradCache computes each chunk twice, and its blocks three times: all with the same numbers."""
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
        encoder.encode_image, encoder.encode_text,
        lambda x, y, g: loss(x, y, group_ids=g, logit_scale=encoder.logit_scale),
        contextlib.nullcontext, torch.device("cpu"), 2,
    )  # fmt: skip
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
def test_slices_fill_their_share_and_no_more(tokens: int, memory: int, precision: str) -> None:
    size, reason = choose_slice_size(tokens, 8, 16, precision, memory)
    assert 1 <= size <= tokens
    blocks = math.ceil(tokens / size)
    assert f"{blocks} block(s) of {size} queries" in reason
    each = 8 * 16 * tokens * (13 if precision == "fp32" else 12)
    if size > SMALLEST_SLICE:
        assert size * each <= memory * BLOCK_SHARE
    if blocks > 1:  # one block fewer would not have fitted
        assert math.ceil(tokens / (blocks - 1)) > max(SMALLEST_SLICE, memory * BLOCK_SHARE // each)
        assert tokens - (blocks - 1) * size > size - blocks  # the last one is hardly smaller than the others
    if size * each > memory * BLOCK_SHARE:
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
