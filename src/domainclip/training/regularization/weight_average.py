"""A running mean of the weights, which is steadier than the weights that any one step leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from domainclip.models.dual_encoder import DualEncoder


def averaged(encoder: DualEncoder) -> dict[str, Tensor]:
    """What a mean is taken of.

    Args:
        encoder: In training.

    Returns:
        Trained parameters, and buffers of floating-point numbers, by name.
    """
    frozen = {name for name, parameter in encoder.model.named_parameters() if not parameter.requires_grad}
    return {
        name: value
        for name, value in encoder.model.state_dict().items()
        if name not in frozen and value.is_floating_point()
    }


class WeightAverage:
    """Exponential moving average of what training changes: trained parameters and floating-point buffers (batch-norm
    statistics).

    Each step takes 1 / ``span`` of the new weights (Polyak averaging with a window, as in Tarvainen & Valpola 2017,
    "Mean teachers are better role models"); before there were ``span`` steps the plain mean of all so far, so that the
    weights it began with leave no trace.

    Args:
        encoder: In training.
        span: In steps; 1 or less means the latest weights themselves.
    """

    def __init__(self, encoder: DualEncoder, span: float) -> None:
        self.encoder, self.span = encoder, max(1.0, span)
        self.steps = 0
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in, after a step."""
        if self.span == 1:
            return  # without a copy of what is there already
        self.steps += 1
        fraction = max(1 / self.steps, 1 / self.span)
        present = averaged(self.encoder)
        if not self.mean:
            self.mean = {name: value.detach().clone() for name, value in present.items()}
            return
        for name, mean in self.mean.items():
            mean.lerp_(present[name], fraction)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Within it the encoder has the mean weights, afterwards its own again. Before the first step they are one."""
        own = self._put(self.mean)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def apply(self) -> None:
        """Leave the mean in the encoder."""
        self._put(self.mean)

    def _put(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put ``weights`` into the encoder; what stood in their place."""
        present = averaged(self.encoder) if weights else {}
        before = {name: present[name].detach().clone() for name in weights}
        for name, value in weights.items():
            present[name].copy_(value)
        return before

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it.

        Returns:
            ``steps`` taken in, and the ``mean`` by name.
        """
        return {"steps": self.steps, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the mean of a checkpoint.

        Args:
            state: From ``state_dict``.
        """
        device = next(self.encoder.parameters()).device
        self.steps = state["steps"]
        self.mean = {name: value.to(device) for name, value in state["mean"].items()}
