"""Sliced attention: exact, in plain operations, and without its matrix kept for the backward pass.

Attention keeps a matrix of ``batch × heads × tokens × tokens`` numbers in every layer until the backward pass reaches
it, unless the kernel is a fused one that computes it again. Here the queries go in blocks, and each block is
checkpointed, so that only queries, keys and values stay. Blocks alone save nothing in training (each keeps its part
of the matrix); computing them again does. The blocks bound what a layer holds while it works (Rabe & Staats 2021,
"Self-attention Does Not Need O(n²) Memory", here with whole rows for each query).

It is registered with ``transformers`` under the name ``sliced`` and, with a size of its own, ``sliced_<size>``; no
module is changed, and a saved model's config does not name it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from domainclip.errors import ConfigurationError
from domainclip.models.checkpoint_blocks import checkpoint_options

SLICE_SIZE = 128
"""Queries in a block where nobody chose a size."""


def sliced_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys dim"],
    attention_mask: Bool[Tensor, "batch 1 queries keys"] | Float[Tensor, "batch 1 queries keys"] | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    slice_size: int = SLICE_SIZE,
    **others: Any,
) -> tuple[Float[Tensor, "batch queries heads dim"], None]:
    """Softmax attention in blocks of queries, in the form ``transformers`` asks of an attention function.

    Softmax is taken in float32 at least, as CLIP's and SigLIP's own plain attention does.

    Args:
        module: Whose attention it is, for messages.
        query: Of each token that looks.
        key: Of each token that is looked at.
        value: Of each token that is looked at.
        attention_mask: Boolean (True: may look) or a number that is added; its queries' dimension may be 1.
        scaling: What scores are multiplied by; None: ``dim ** -0.5``.
        dropout: Of the attention weights.
        is_causal: Without a mask: whether no token sees a later one.
        slice_size: Queries in a block.
        **others: What ``transformers`` passes besides; what would change the result is refused.

    Returns:
        The output, and None in place of the attention weights.

    Raises:
        ConfigurationError: It is asked for what it does not compute: position biases, capped scores, attention sinks.
    """
    for unknown in ("position_bias", "softcap", "s_aux"):
        if others.get(unknown) is not None:
            raise ConfigurationError(
                f"sliced attention does not compute {unknown}, which {type(module).__name__} asks for: "
                "set attention=sdpa"
            )
    if attention_mask is None and is_causal:  # a caller that made no mask, because it counts on a causal kernel
        length = query.shape[2]
        attention_mask = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
    # Once for all blocks; and in float16 the unscaled scores could overflow.
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    training = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    blocks = []
    for start in range(0, query.shape[2], slice_size):
        rows = slice(start, start + slice_size)
        mask = attention_mask
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., rows, :]
        inputs = (query[:, :, rows], key, value, mask, dropout)
        if training:
            # The random state is fetched only where random numbers are drawn: on a GPU that costs a wait.
            options = checkpoint_options(query.device) if dropout > 0 else {"use_reentrant": False}
            blocks.append(checkpoint(_block, *inputs, preserve_rng_state=dropout > 0, **options))
        else:
            blocks.append(_block(*inputs))
    return torch.cat(blocks, dim=1), None


def _block(
    query: Float[Tensor, "batch heads rows dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys dim"],
    mask: Tensor | None,
    dropout: float,
) -> Float[Tensor, "batch rows heads dim"]:
    weights = query @ key.transpose(-1, -2)  # one name throughout: what a step has read is freed at once
    if mask is not None and mask.dtype == torch.bool:
        # The least number instead of minus infinity: a row that may look nowhere (padding) is no NaN.
        weights.masked_fill_(mask.logical_not(), torch.finfo(weights.dtype).min)
    elif mask is not None:
        weights = weights + mask
    weights = torch.softmax(weights, dim=-1, dtype=torch.promote_types(weights.dtype, torch.float32))
    weights = weights.to(value.dtype)
    if dropout > 0:
        weights = F.dropout(weights, dropout)
    return (weights @ value).transpose(1, 2)


def _explicit_mask(*, allow_is_bidirectional_skip: bool = False, **arguments: Any) -> Tensor | None:
    """The boolean mask of ``sdpa``, never left out in favour of a kernel's own causal flag.

    It is left out where every token may look at every other and there is no padding mask at all. Whether a padding
    mask hides anything is not asked: that would stop an accelerator in each step.
    """
    skip = allow_is_bidirectional_skip and arguments.get("attention_mask") is None
    return sdpa_mask(**{**arguments, "allow_is_causal_skip": False}, allow_is_bidirectional_skip=skip)


def register_sliced(slice_size: int | None = None) -> str:
    """Make sliced attention known to ``transformers``. Doing it again changes nothing.

    A size is part of the name because ``transformers`` hands an attention function nothing else of ours, and two
    models, or the two towers of one, may want different sizes.

    Args:
        slice_size: Queries in a block; None: ``SLICE_SIZE``.

    Returns:
        The name to set.
    """
    name = "sliced" if slice_size is None else f"sliced_{slice_size}"
    AttentionInterface.register(name, partial(sliced_attention, slice_size=slice_size or SLICE_SIZE))
    AttentionMaskInterface.register(name, _explicit_mask)
    return name


register_sliced()
