"""One batch scored at several temperatures: sharp ones work on the hardest negatives, soft ones on all of them.

The same similarities under several τ, as in multi-temperature contrastive learning (Zhang et al. 2021, "Temperature as
Uncertainty in Contrastive Learning", gives the role of τ; the sum over fixed scales is a plain weighted mean).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from domainclip.config import LossSettings
from domainclip.errors import ConfigurationError
from domainclip.losses.contrastive import cross_entropy_rows
from domainclip.losses.objective import ContrastiveObjective, RowLoss, Rows, SharedKeywords, shared_keywords
from domainclip.losses.registry import LOSSES


class MultiScaleLoss(ContrastiveObjective):
    """Weighted sum of multi-positive losses at the temperatures τ · c_k:

        L = Σ_k w_k · L(τ c_k)          c: ``scales``, w: ``scale_weights``, of sum 1 with ``normalize_weights``

    τ is ``base_temperature``, or the model's where ``logit_scale`` is passed. Extras: ``scale_losses``,
    ``temperatures``, ``scale_weights`` (each ``[K]``), ``base_temperature``, ``target_entropy``.
    """

    scales: Tensor
    scale_weights: Tensor

    def __init__(
        self,
        scales: Sequence[float] = (1.0, 0.75, 0.5),
        base_temperature: float = 0.07,
        scale_weights: Sequence[float] | None = None,
        normalize_weights: bool = True,
        **shared: Unpack[SharedKeywords],
    ) -> None:
        super().__init__(base_temperature, **shared)
        weights = list(scale_weights) if scale_weights is not None else [1.0] * len(scales)
        if not scales or not all(scale > 0 for scale in scales):
            raise ConfigurationError(f"Scales must be positive, at least one of them (scales={list(scales)!r})")
        if len(weights) != len(scales):
            raise ConfigurationError(f"{len(scales)} scales and {len(weights)} scale_weights: give one for each")
        if min(weights) < 0 or not sum(weights) > 0:
            raise ConfigurationError(f"scale_weights must be zero or more, and not all zero (they are {weights!r})")
        total = sum(weights) if normalize_weights else 1.0
        self.register_buffer("scales", torch.tensor(list(scales)))
        self.register_buffer("scale_weights", torch.tensor([weight / total for weight in weights]))

    @property
    def base_temperature(self) -> Tensor:
        """τ, where the caller does not own it."""
        return self.temperature

    @classmethod
    def from_settings(cls, settings: LossSettings) -> MultiScaleLoss:
        """The objective that a recipe asks for.

        Args:
            settings: The group of the recipe that is read.

        Returns:
            With the recipe's values.
        """
        keywords = shared_keywords(settings)
        base = keywords.pop("temperature")
        return cls(
            settings.multi_scale_scales,
            base,
            settings.multi_scale_weights,
            label_smoothing=settings.label_smoothing,
            **keywords,
        )

    def row_loss(self, rows: Rows) -> RowLoss:
        """Weighted sum of cross entropies at several temperatures.

        Args:
            rows: Similarities of some rows with all candidates, and which of these are positives.

        Returns:
            A loss for each row, and that of each scale.
        """
        targets = rows.targets()
        losses: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for scale in self.scales:
            loss, metrics = cross_entropy_rows(rows.logits / scale.to(rows.logits.dtype), targets, self.label_smoothing)
            losses.append(loss)
        by_scale = torch.stack(losses)
        weights = self.scale_weights.to(by_scale.dtype)
        entropy = metrics["target_entropy"] * weights.sum()
        return weights @ by_scale, {"scale_losses": by_scale.sum(dim=1), "target_entropy": entropy}

    def contrast(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The objective over a batch, and what is told of its scales.

        Args:
            *args: As for ``ContrastiveObjective.contrast``.
            **kwargs: The same.

        Returns:
            What that returns, with ``base_temperature``, ``temperatures`` and ``scale_weights``.
        """
        output = super().contrast(*args, **kwargs)
        return {
            **output,
            "base_temperature": output["temperature"],
            "temperatures": output["temperature"] * self.scales.to(output["temperature"].dtype),
            "scale_weights": self.scale_weights,
        }


LOSSES.register("multi_scale")(MultiScaleLoss.from_settings)
