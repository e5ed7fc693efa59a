"""Activation checkpointing of the towers' blocks."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch

from domainclip.models.recompute import same_random_numbers


def checkpoint_blocks(model: Any, enabled: bool) -> list[Literal["image", "text"]]:
    """Keep only each block's input in training and compute its inside again backward, with the same dropout: the same
    gradients for one more forward pass (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

    ``model``: what ``DualEncoder.model`` is, on the device it trains on. Returns the towers that ``transformers``
    cannot do it for, such as convolutional ones; they are left alone.
    """
    unsupported: list[Literal["image", "text"]] = []
    towers: dict[Literal["image", "text"], Any] = {"image": model.vision_model, "text": model.text_model}
    for name, tower in towers.items():
        if not getattr(tower, "supports_gradient_checkpointing", False):
            unsupported.append(name)
            continue
        # Newer versions of transformers call it activation checkpointing, and warn at the older name.
        kind = "activation" if hasattr(tower, "activation_checkpointing_enable") else "gradient"
        if enabled:
            if getattr(tower.config, "use_cache", False):  # a generator's memory, which BERT would warn about
                tower.config.use_cache = False
            getattr(tower, f"{kind}_checkpointing_enable")(checkpoint_options(model.logit_scale.device))
            # For the sake of reentrant checkpoints transformers makes the token embeddings' output need a gradient.
            # These do not: under LoRA it would be computed for nothing, and a locked tower would be run backward.
            if getattr(tower, "_require_grads_hook", None) is not None:
                tower.disable_input_require_grads()
        else:
            getattr(tower, f"{kind}_checkpointing_disable")()
    return unsupported


def checkpoint_options(device: torch.device) -> dict[str, Any]:
    """Keywords for ``torch.utils.checkpoint.checkpoint`` with which a replay repeats the first pass exactly."""
    options: dict[str, Any] = {"use_reentrant": False}
    if device.type == "mps":
        options["context_fn"] = partial(same_random_numbers, device.type)
    return options
