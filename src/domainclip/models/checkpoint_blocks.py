"""Activation checkpointing of the towers' blocks, exact with dropout on Apple's GPU too."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from domainclip.models.towers import TowerName


def checkpoint_blocks(model: PreTrainedModel, enabled: bool) -> list[TowerName]:
    """Keep only each block's input in training and compute its inside again backward, with the same dropout: the same
    gradients for one more forward pass (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

    Args:
        model: What ``DualEncoder.model`` is, on the device it trains on.
        enabled: False switches it off again.

    Returns:
        The towers that ``transformers`` cannot do it for, such as convolutional ones; they are left alone.
    """
    unsupported: list[TowerName] = []
    towers: dict[TowerName, PreTrainedModel] = {"image": model.vision_model, "text": model.text_model}
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
    """Keywords for ``torch.utils.checkpoint.checkpoint`` with which a replay repeats the first pass exactly.

    Args:
        device: Where the model trains.

    Returns:
        The keywords.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if device.type == "mps":
        options["context_fn"] = partial(same_random_numbers, device.type)
    return options


class MPSRandomState(AbstractContextManager):
    """Inside, the GPU draws from where it stood when this was made; afterwards it goes on as if nothing had been.

    It may be entered again: a second backward pass over one graph computes the part once more.
    """

    def __init__(self) -> None:
        self.at_first = torch.mps.get_rng_state()
        self._present: list[Tensor] = []

    def __enter__(self) -> None:
        self._present.append(torch.mps.get_rng_state())
        torch.mps.set_rng_state(self.at_first)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        torch.mps.set_rng_state(self._present.pop())


def same_random_numbers(device_type: str) -> tuple[AbstractContextManager, AbstractContextManager]:
    """A ``context_fn`` for ``torch.utils.checkpoint``, with ``functools.partial(same_random_numbers, device.type)``.

    Its ``preserve_rng_state`` covers the CPU and CUDA alone: on MPS, without a word, dropout takes other numbers when
    it is computed again, and the gradient is that of another network (pytorch issue 127676; so in torch 2.13).

    Args:
        device_type: ``cpu``, ``cuda`` or ``mps``.

    Returns:
        What to enter for the first pass, and for the second.
    """
    return nullcontext(), MPSRandomState() if device_type == "mps" else nullcontext()
