"""One text, the same image at several sizes: what a finding is called must not depend on how large it was scanned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from domainclip.config import LossSettings
from domainclip.errors import ConfigurationError, ShapeError
from domainclip.losses.contrastive import MultiPositiveContrastiveLoss
from domainclip.losses.objective import shared_keywords
from domainclip.losses.registry import LOSSES, call_objective


class MultiResolutionLoss(nn.Module):
    """Mean of a contrastive loss over the sizes of the image, and the agreement between them:

        L = Σ_k w_k · L(x^k, y) + λ · mean_{k>1} mean_i (1 - cos(x_i^k, sg[x_i^1]))

    x^k: embeddings at the k-th of ``resolution_scales`` (fractions of the native resolution, the first one leads), w_k
    equal unless ``weights`` are given (their sum is made 1), λ = ``consistency_weight``, sg: no gradient, so that the
    small image learns from the large one and not the other way (as in knowledge distillation across sizes; Touvron et
    al. 2019, "Fixing the train-test resolution discrepancy", for what sizes do to embeddings).

    ``image_embeds`` is ``[B, K, D]``; the training loop makes it so for an objective with ``resolution_scales``. A
    ``[B, D]`` tensor is one size. Extras: ``resolution_losses`` ``[K]``, ``consistency_loss``, and those of the
    contrastive loss (``objective``, by default the multi-positive one) at the first size.
    """

    def __init__(
        self,
        resolution_scales: Sequence[float] = (1.0, 0.5),
        weights: Sequence[float] | None = None,
        consistency_weight: float = 0.1,
        objective: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not resolution_scales or not all(scale > 0 for scale in resolution_scales):
            raise ConfigurationError(f"resolution_scales must be positive (they are {list(resolution_scales)!r})")
        fractions = list(weights) if weights is not None else [1.0] * len(resolution_scales)
        if len(fractions) != len(resolution_scales) or min(fractions) < 0 or not sum(fractions) > 0:
            raise ConfigurationError(
                f"weights must be one number of zero or more for each of {len(resolution_scales)} resolution_scales, "
                f"not all zero (they are {fractions!r})"
            )
        self.resolution_scales = tuple(float(scale) for scale in resolution_scales)
        self.weights = [fraction / sum(fractions) for fraction in fractions]
        self.consistency_weight = consistency_weight
        self.objective = objective if objective is not None else MultiPositiveContrastiveLoss()

    @classmethod
    def from_settings(cls, settings: LossSettings) -> MultiResolutionLoss:
        """The objective that a recipe asks for.

        Args:
            settings: The group of the recipe that is read.

        Returns:
            With the recipe's values.
        """
        objective = MultiPositiveContrastiveLoss(label_smoothing=settings.label_smoothing, **shared_keywords(settings))
        return cls(settings.resolution_scales, consistency_weight=settings.consistency_weight, objective=objective)

    def forward(
        self,
        image_embeds: Float[Tensor, "batch scales dim"],
        text_embeds: Float[Tensor, "batch dim"],
        group_ids: Int[Tensor, " batch"] | None = None,
        logit_scale: Float[Tensor, ""] | None = None,
        progress: float = 1.0,
        logit_bias: Float[Tensor, ""] | None = None,
    ) -> dict[str, Any]:
        """The objective over a batch.

        Args:
            image_embeds: ``[batch, scales, dim]``, one for each of ``resolution_scales``; ``[batch, dim]`` is one size.
            text_embeds: ``[batch, dim]``; row i belongs to image i.
            group_ids: ``[batch]``; rows of one group are positives of each other. None: each row is a group of its own.
            logit_scale: The model's log(1/τ), which takes the place of the objective's own.
            progress: How much of the training is done, from 0 to 1.
            logit_bias: The model's own (SigLIP), for an objective that takes one.

        Returns:
            What the contrastive loss gives at the first size, with ``loss``, ``image_to_text_loss`` and
            ``text_to_image_loss`` over all sizes, ``resolution_losses`` ``[scales]`` and ``consistency_loss``.

        Raises:
            ShapeError: The embeddings do not fit ``resolution_scales`` or each other.
        """
        if image_embeds.ndim == 2:
            image_embeds = image_embeds[:, None]
        if image_embeds.ndim != 3 or image_embeds.shape[1] not in (1, len(self.weights)):
            raise ShapeError(
                f"Expected embeddings [n, {len(self.weights)}, dim], one for each of resolution_scales, got shape "
                f"{tuple(image_embeds.shape)}"
            )
        context = {"group_ids": group_ids, "logit_scale": logit_scale, "progress": progress, "logit_bias": logit_bias}
        sizes = image_embeds.unbind(dim=1)
        weights = self.weights if len(sizes) > 1 else [1.0]
        outputs = [call_objective(self.objective, size, text_embeds, **context) for size in sizes]
        total = {
            name: sum(weight * output[name] for weight, output in zip(weights, outputs, strict=True))
            for name in ("loss", "image_to_text_loss", "text_to_image_loss")
        }
        wide = torch.float64 if image_embeds.dtype == torch.float64 else torch.float32
        lead = sizes[0].detach().to(wide)
        apart = [1 - F.cosine_similarity(size.to(wide), lead, dim=-1).mean() for size in sizes[1:]]
        consistency = torch.stack(apart).mean() if apart else torch.zeros((), dtype=wide, device=image_embeds.device)
        return {
            **outputs[0],
            **total,
            "loss": total["loss"] + self.consistency_weight * consistency,
            "resolution_losses": torch.stack([output["loss"] for output in outputs]),
            "consistency_loss": consistency,
        }


LOSSES.register("multi_resolution")(MultiResolutionLoss.from_settings)
