"""Which attention a tower computes with, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from domainclip.config.settings import MemorySettings
from domainclip.errors import ConfigurationError
from domainclip.models.sliced_attention import register_sliced

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AttentionName = Literal["sdpa", "sliced", "eager"]
AttentionChoice = Literal["auto", "sdpa", "sliced", "eager"]

SLICED_FROM_TOKENS = 197
"""ViT-B/16 at 224 pixels. With fewer, a layer's other activations are so much larger than its matrix that computing
it twice buys little: at width 768 and 12 heads it is 4 % of what a layer keeps at 50 tokens, 6 % at 77, 14 % at 197 and
32 % at 577 (benchmarks/attention.py)."""

BLOCK_FRACTION = 1 / 16
"""Of the memory, what one block of sliced attention may take while it is computed again."""

SMALLEST_SLICE = 16
"""Smaller blocks cost more time than they are worth: at 577 tokens and 12 heads, blocks of 128, 32, 16, 8 and 4
queries took 1.1, 1.4, 2.0, 2.5 and 4.1 times as long as a single one (one CPU thread, forward and backward)."""

_BLOCK_BYTES = {"fp32": 13, "bf16": 12, "fp16": 12}
"""Bytes that a block holds at its peak, in its backward pass, for each entry of its matrix; measured on the CPU with
torch 2.13 (11.3 to 13.0 in float32, 10.5 to 11.8 in half precision, where the softmax is in float32 all the same)."""
_DROPOUT_BYTES = {"fp32": 3, "bf16": 0, "fp16": 0}
"""Besides, with dropout (15.6 to 15.8 were measured in float32)."""


@dataclass(frozen=True)
class AttentionDecision:
    """How a tower computes attention, and why. ``slice_size``: queries in a block, for ``sliced`` alone."""

    name: AttentionName
    slice_size: int | None
    reason: str

    @property
    def implementation(self) -> str:
        """The name ``transformers`` knows it by; registers a size that was not used before."""
        return self.name if self.name != "sliced" else register_sliced(self.slice_size)


# --- which one ---


def choose_attention(
    tokens: int,
    batch: int,
    heads: int,
    device_type: str,
    training: bool,
    precision: str,
    memory_bytes: int,
    *,
    choice: AttentionChoice = "auto",
    slice_size: int | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    checkpointed: bool = False,
) -> AttentionDecision:
    """The attention of one tower, with its reason.

    Args:
        tokens: Of one image or text.
        batch: Images or texts that go through at once.
        heads: Heads of a layer.
        device_type: ``cpu``, ``cuda`` or ``mps``.
        training: Whether there is a backward pass.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        memory_bytes: What the whole run may use.
        choice: The user's; only ``auto`` leaves a choice.
        slice_size: The user's; it counts where ``sliced`` is taken.
        causal: Whether no token sees a later one.
        dropout: Of the attention weights.
        checkpointed: Whether whole layers are computed again backward anyhow.

    Returns:
        What the tower should compute with, and why.

    Raises:
        ConfigurationError: For a size, a number or a precision that makes no sense.
    """
    if min(tokens, batch, heads) < 1 or memory_bytes < 0 or (slice_size is not None and slice_size < 1):
        raise ConfigurationError(
            f"Attention over tokens={tokens}, batch={batch}, heads={heads} with memory_bytes={memory_bytes} and "
            f"slice_size={slice_size}: sizes must be positive"
        )
    if precision not in _BLOCK_BYTES:
        raise ConfigurationError(f"Invalid precision {precision!r}: choose {', '.join(_BLOCK_BYTES)}")

    # PyTorch issue 195910: told "causal" instead of given the mask, Apple's fused kernel leaks in half precision.
    leaks = device_type == "mps" and causal and precision != "fp32"
    leak = "in half precision Apple's fused kernel shows a causal tower later tokens: computed plainly, with a mask"

    def sliced(reason: str) -> AttentionDecision:
        if slice_size is not None:
            return AttentionDecision("sliced", slice_size, f"{reason}; attention_slice_size={slice_size} is set")
        size, words = choose_slice_size(tokens, batch, heads, precision, memory_bytes, dropout > 0)
        return AttentionDecision("sliced", size, f"{reason}; {words}")

    if choice == "sliced":
        return sliced("attention=sliced is set")
    if choice == "eager":
        return AttentionDecision("eager", None, "attention=eager is set")
    if choice == "sdpa" and leaks:
        return AttentionDecision("eager", None, f"attention=sdpa is set, but {leak}")
    if choice == "sdpa":
        return AttentionDecision("sdpa", None, "attention=sdpa is set")
    if choice != "auto":
        raise ConfigurationError(f"Invalid attention {choice!r}: choose auto, sdpa, sliced or eager")

    kept = _keeps_the_matrix(device_type, training, dropout)
    one_block = (
        tokens * _bytes_of_a_query(tokens, batch, heads, precision, dropout > 0) <= memory_bytes * BLOCK_FRACTION
    )
    if kept and tokens >= SLICED_FROM_TOKENS and not (checkpointed and one_block):
        matrix = batch * heads * tokens**2 * 4 / 2**20
        return sliced(f"{kept}: a matrix of {matrix:.1f} MiB (float32) in each layer at {tokens} tokens")
    if leaks:
        return AttentionDecision("eager", None, leak)
    if not training:
        return AttentionDecision("sdpa", None, "no backward pass: nothing is kept from layer to layer")
    if kept:
        if tokens >= SLICED_FROM_TOKENS:
            return AttentionDecision("sdpa", None, "gradient checkpointing holds one layer's matrix at a time; it fits")
        few = f"{tokens} tokens: the matrix is a small part of a layer (sliced from {SLICED_FROM_TOKENS} tokens)"
        return AttentionDecision("sdpa", None, few)
    return AttentionDecision("sdpa", None, f"the fused kernel on {device_type} computes its matrix again by itself")


def _keeps_the_matrix(device_type: str, training: bool, dropout: float) -> str:
    """Why ``sdpa`` would keep the matrix for the backward pass; empty where it does not.

    CPU: measured with torch 2.13 (the test asserts it): `_scaled_dot_product_flash_attention_for_cpu` serves both
    directions in float32, bfloat16 and float64, without a mask, with the causal flag, with a boolean and with a float
    mask, and keeps one number for each query. A boolean mask is turned into a float one, kept without its heads. With
    dropout it falls back to plain operations, which keep three float32 matrices.

    CUDA: read, not measured: the backward passes of its flash, memory-efficient and cuDNN kernels take the logarithm
    of each query's sum in place of the matrix (native_functions.yaml of torch 2.13), and dropout's random state.

    MPS: read, not measured: there is no backward kernel, so that training goes through the plain operations (pytorch
    issue 179294; none is listed in native_functions.yaml of torch 2.13).
    """
    if training and device_type == "mps":
        return "MPS has no fused backward pass for attention"
    if training and device_type == "cpu" and dropout > 0:
        return f"the fused kernel on the CPU takes no dropout ({dropout:g})"
    return ""


def choose_slice_size(
    tokens: int, batch: int, heads: int, precision: str, memory_bytes: int, dropout: bool = False
) -> tuple[int, str]:
    """Queries in a block, and why: the fewest blocks that each fit their fraction of the memory, of equal sizes.

    Equal, because each shape costs compiled kernels on MPS, and the largest block sets the peak.

    Args:
        tokens: Of one image or text.
        batch: Images or texts that go through at once.
        heads: Heads of a layer.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        memory_bytes: What the whole run may use.
        dropout: Whether the attention weights have any.

    Returns:
        The size, and the reason in words.
    """
    each = _bytes_of_a_query(tokens, batch, heads, precision, dropout)
    fraction = memory_bytes * BLOCK_FRACTION
    most = max(SMALLEST_SLICE, int(fraction // each))
    blocks = math.ceil(tokens / most)
    size = math.ceil(tokens / blocks)
    words = f"{math.ceil(tokens / size)} block(s) of {size} queries, each {size * each / 2**20:.1f} MiB"
    if size * each > fraction:
        return size, f"{words}: more than {BLOCK_FRACTION:.1%} of the memory, but smaller blocks would waste time"
    return size, f"{words}, at most {BLOCK_FRACTION:.1%} of the memory"


def _bytes_of_a_query(tokens: int, batch: int, heads: int, precision: str, dropout: bool) -> int:
    return batch * heads * tokens * (_BLOCK_BYTES[precision] + dropout * _DROPOUT_BYTES[precision])


# --- what a tower is ---


@dataclass(frozen=True)
class AttentionShape:
    """What ``choose_attention`` asks of a tower."""

    tokens: int
    heads: int
    dropout: float


def has_attention(tower: PreTrainedModel) -> bool:
    """Whether a tower's attention can be exchanged.

    Not in a convolutional tower, which has none, nor where ``transformers`` cannot exchange it (windows, several
    widths): such towers are left as they are.

    Args:
        tower: A ``transformers`` model.

    Returns:
        Whether it can.
    """
    exchangeable = bool(tower._can_set_attn_implementation())
    return exchangeable and isinstance(getattr(tower.config, "num_attention_heads", None), int)


def attention_shape(
    tower: PreTrainedModel, *, resolution: int | None = None, text_length: int | None = None
) -> AttentionShape | None:
    """Of an image tower at ``resolution`` pixels, or of a text tower at ``text_length`` tokens; None without one.

    Args:
        tower: A ``transformers`` model.
        resolution: Of the images, in pixels, for an image tower.
        text_length: Of the texts, in tokens, for a text tower.

    Returns:
        Its numbers of tokens and heads, and its dropout.
    """
    if not has_attention(tower):
        return None
    config = tower.config
    heads = int(config.num_attention_heads)
    dropout = getattr(config, "attention_dropout", None) or getattr(config, "attention_probs_dropout_prob", None)
    if text_length is not None:
        return AttentionShape(text_length, heads, float(dropout or 0.0))
    grid = (resolution or _edge(config.image_size)) // _edge(config.patch_size)
    prefix = 0 if config.model_type.startswith("siglip") else 1 + int(getattr(config, "num_register_tokens", 0) or 0)
    return AttentionShape(grid**2 + prefix, heads, float(dropout or 0.0))


def _edge(size: int | list[int] | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]


def decide_attention(
    encoder: Any,
    settings: MemorySettings,
    *,
    batch: int,
    device_type: str,
    training: bool,
    precision: str,
    memory_bytes: int,
    resolution: int | None = None,
    text_length: int | None = None,
) -> dict[str, AttentionDecision]:
    """``image`` and ``text``: how each tower of a ``DualEncoder`` that has attention should compute it.

    ``encoder.set_attention(**decisions)`` makes it so.

    Args:
        encoder: The dual encoder.
        settings: The user's choices: ``attention``, ``attention_slice_size`` and ``gradient_checkpointing``.
        batch: Images or texts that go through a tower at once.
        device_type: ``cpu``, ``cuda`` or ``mps``.
        training: Whether there is a backward pass.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        memory_bytes: What the whole run may use.
        resolution: In pixels; None: the model's own.
        text_length: In tokens; None: the model's own.

    Returns:
        A decision for each tower that has attention.

    Raises:
        ConfigurationError: For sizes or a precision that make no sense.
    """
    model = encoder.model
    shapes = {
        "image": attention_shape(model.vision_model, resolution=resolution or encoder.native_resolution),
        "text": attention_shape(model.text_model, text_length=text_length or encoder.text_length),
    }
    # CLIP's text tower is causal, SigLIP's and those padded behind a mask are not; of others the safe answer.
    causal = encoder.processor.text_padding != "masked" and not encoder.is_siglip
    return {
        side: choose_attention(
            shape.tokens,
            batch,
            shape.heads,
            device_type,
            training,
            precision,
            memory_bytes,
            choice=settings.attention,
            slice_size=settings.attention_slice_size,
            causal=causal and side == "text",
            dropout=shape.dropout,
            checkpointed=bool(settings.gradient_checkpointing),
        )
        for side, shape in shapes.items()
        if shape is not None
    }
