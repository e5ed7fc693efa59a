"""Objectives shaped by what errors mean in a domain: close calls, hard negatives, near misses."""

from __future__ import annotations

from typing import Any, Unpack, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from domainclip.config import DataSettings, LossSettings, ObjectiveSettings
from domainclip.config.domain_name import Domain
from domainclip.domains.files import domain_family
from domainclip.errors import ConfigurationError
from domainclip.losses.contrastive import cross_entropy_rows
from domainclip.losses.hard_negative import progressed
from domainclip.losses.objective import ContrastiveObjective, RowLoss, Rows, SharedKeywords, check_batch
from domainclip.losses.registry import LOSSES

SHARPNESS: dict[Domain, float] = {"general": 1.0, "medical": 1.25, "industrial": 1.0, "scientific": 0.8}
"""What the objective's own 1/τ is multiplied by; a temperature that the model owns is left to the model."""


class DomainSpecificLoss(ContrastiveObjective):
    """Multi-positive cross-entropy with one term of the domain's own, of weight w = ``domain_weight``:

    ``medical``, an additive margin m on the positives (Yang et al. 2019, "Improving Multilingual Sentence Embedding
    using Bi-directional Dual Encoder with Additive Margin Softmax", eq. 4): to be right by a hair is not enough.

        s_ij ← (sim_ij - w m [j positive]) / τ

    ``industrial``, similar images as hard negatives: a good part and a flawed one differ by a few pixels, so a negative
    counts more, the more its *image* looks like the query's (β = ``hardness_strength``, r its warm-up).

        s_ij ← sim_ij / τ + r w β max(0, cos(x_i, x_j)) [j negative]

    ``scientific``, soft targets from what the texts say of each other, so that taking one species for its neighbour
    costs less than taking it for a rock (Gao et al. 2024, "SoftCLIP", for the targets; α = min(w
    ``soft_target_fraction``, 0.9), and the text similarities carry no gradient).

        t_ij ← (1 - α) t_ij + α softmax_j(cos(y_i, y_j) / τ_t),  τ_t = 0.1

    ``general``: none of them. ``domain_labels`` ``[B]`` (-1: unknown): for ``medical``, rows of one label are
    clinically equal, and positives of each other; for ``industrial`` they are never hard negatives.

    Without a model-owned temperature τ is divided by 1.25 (medical), 1 (industrial, general), 0.8 (scientific). Extras:
    ``domain``, ``domain_weight``, ``target_entropy``. With w = 0 it is the multi-positive loss; the medical and the
    industrial one never fall as w grows.
    """

    TEXT_TEMPERATURE = 0.1

    def __init__(
        self,
        domain: str = "general",
        temperature: float = 0.07,
        domain_weight: float = 1.0,
        *,
        margin: float = 0.05,
        hardness_strength: float = 1.0,
        hardness_warmup: float = 0.0,
        soft_target_fraction: float = 0.2,
        **shared: Unpack[SharedKeywords],
    ) -> None:
        super().__init__(temperature, **shared)
        if domain not in get_args(Domain):
            raise ConfigurationError(f"Invalid domain {domain!r}: choose one of {', '.join(get_args(Domain))}")
        if not domain_weight >= 0:
            raise ConfigurationError(f"Domain weight must be zero or more (domain_weight={domain_weight!r})")
        self.domain: Domain = domain  # type: ignore[assignment]
        self.domain_weight = domain_weight
        self.margin = margin
        self.hardness_strength = hardness_strength
        self.hardness_warmup = hardness_warmup
        self.soft_target_fraction = soft_target_fraction

    @classmethod
    def from_settings(cls, settings: LossSettings) -> DomainSpecificLoss:
        """The objective that a recipe asks for.

        Args:
            settings: The group of the recipe that is read.

        Returns:
            For the recipe's domain.
        """
        return cls(**{**cls.keywords_from(settings), "domain": _family_of(settings)})

    def own_scale(self) -> Tensor:
        """What similarities are multiplied by where no model gives a scale.

        Returns:
            The inverse of the domain's temperature.
        """
        return self.log_scale.exp() * SHARPNESS[self.domain]

    def row_loss(self, rows: Rows, labels: Tensor | None = None) -> RowLoss:
        """The domain's own objective, and its extra term.

        Args:
            rows: Similarities of some rows with all candidates, and which of these are positives.
            labels: A class for each pair, negative where it is not known; None: none are known.

        Returns:
            A loss for each row.
        """
        positive, logits, weight = rows.positive, rows.logits, self.domain_weight
        same_label = torch.zeros_like(positive)
        if labels is not None:
            same_label = (labels[rows.index][:, None] == labels[None, :]) & (labels[rows.index] >= 0)[:, None]
        if self.domain == "medical":
            positive = positive | same_label
            logits = logits - weight * self.margin * rows.scale * positive
        elif self.domain == "industrial":
            alike = (rows.images[rows.index] @ rows.images.T).clamp_min(0) * ~(positive | same_label)
            strength = weight * self.hardness_strength * progressed(self.hardness_warmup, rows.progress)
            logits = logits + strength * alike
        targets = positive.to(logits.dtype)
        targets = targets / targets.sum(dim=1, keepdim=True)
        if self.domain == "scientific":
            fraction = min(weight * self.soft_target_fraction, 0.9)
            near = (rows.texts[rows.index] @ rows.texts.T / self.TEXT_TEMPERATURE).softmax(dim=1)
            targets = (1 - fraction) * targets + fraction * near
        return cross_entropy_rows(logits, targets, self.label_smoothing)

    def forward(
        self,
        image_embeds: Float[Tensor, "batch dim"],
        text_embeds: Float[Tensor, "batch dim"],
        group_ids: Int[Tensor, " batch"] | None = None,
        logit_scale: Float[Tensor, ""] | None = None,
        progress: float = 1.0,
        domain_labels: Int[Tensor, " batch"] | None = None,
    ) -> dict[str, Any]:
        """The objective over a batch.

        Args:
            image_embeds: ``[batch, dim]``, as the image tower gives them.
            text_embeds: ``[batch, dim]``, as the text tower gives them; row i belongs to image i.
            group_ids: ``[batch]``; rows of one group are positives of each other. None: each row is a group of its own.
            logit_scale: The model's logarithm of the inverse temperature, which takes the place of the objective's own.
            progress: How much of the training is done, from 0 to 1.
            domain_labels: ``[batch]``; a class for each pair, negative where it is not known. None: none are known.

        Returns:
            ``loss``, ``image_to_text_loss``, ``text_to_image_loss``, ``temperature``, ``domain`` and ``domain_weight``
            among others.
        """
        check_batch(image_embeds, text_embeds, domain_labels, "domain_labels")
        output = self.contrast(
            image_embeds,
            text_embeds,
            group_ids,
            logit_scale,
            progress,
            lambda rows: self.row_loss(rows, domain_labels),
        )
        return {**output, "domain": self.domain, "domain_weight": self.domain_weight}


def _family_of(settings: LossSettings) -> Domain:
    if isinstance(settings, ObjectiveSettings):
        return settings.family
    return domain_family(settings.domain) if isinstance(settings, DataSettings) else "general"


LOSSES.register("domain_specific")(DomainSpecificLoss.from_settings)
