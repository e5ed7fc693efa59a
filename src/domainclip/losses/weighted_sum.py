"""Several objectives at once, with weights that stay or that balance themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from domainclip.config import LossSettings
from domainclip.errors import ConfigurationError
from domainclip.losses.registry import LOSSES, call_objective
from domainclip.similarity import BilinearSimilarity

Balancing = Literal["fixed", "uncertainty", "gradient_norm"]
_MEMORY = 0.9
"""Fraction of the old gradient norm that each batch keeps."""


class WeightedSumLoss(nn.Module):
    """``L = Σ_k v_k L_k`` over ``objectives``, with v_k made from the given weights w_k by ``balancing``:

    - ``fixed``: v_k = w_k.
    - ``uncertainty`` (Kendall et al. 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses", eq. 10): each
      objective has a learned log-variance c_k, 0 at first, and L = Σ_k (w_k e^{-c_k} L_k + c_k w_k / 2); at the optimum
      e^{c_k} = 2 L_k, so an objective that stays large counts less.
    - ``gradient_norm`` (Chen et al. 2018, "GradNorm", with α = 0, solved directly instead of by descent on the
      weights): v_k ∝ w_k / G_k, where G_k is the norm of L_k's gradient at the embeddings, smoothed over batches, so
      that every objective moves them in proportion to its weight, whatever its scale; Σ_k v_k = Σ_k w_k.

    Returns the weighted ``loss``, ``image_to_text_loss``, ``text_to_image_loss``, the first objective's ``temperature``
    and logits, and ``objective_losses`` and ``objective_weights`` (each name → scalar).
    """

    weights: Tensor
    norms: Tensor
    rate_factor = 100.0
    """Log-variances learn this many times faster than the towers: they have one training to converge."""

    def __init__(self, objectives: Mapping[str, tuple[nn.Module, float]], balancing: Balancing = "fixed") -> None:
        super().__init__()
        if not objectives:
            raise ConfigurationError("A weighted sum needs objectives: set objectives={contrastive: 1, …}")
        if balancing not in get_args(Balancing):
            raise ConfigurationError(f"Invalid loss balancing {balancing!r}: choose {', '.join(get_args(Balancing))}")
        for name, (_, weight) in objectives.items():
            if not weight > 0:
                raise ConfigurationError(f"The weight of {name!r} must be positive (it is {weight!r})")
        self.objectives = nn.ModuleDict({name: objective for name, (objective, _) in objectives.items()})
        self.balancing = balancing
        self.register_buffer("weights", torch.tensor([float(weight) for _, weight in objectives.values()]))
        if balancing == "uncertainty":
            self.log_variances = nn.Parameter(torch.zeros(len(objectives)))
            self.log_variances.rate_factor = self.rate_factor  # type: ignore[attr-defined]
        if balancing == "gradient_norm":
            self.register_buffer("norms", torch.zeros(len(objectives)))  # 0: no batch was seen yet
        shared = next((m for m in self.modules() if isinstance(m, BilinearSimilarity)), None)
        for part in list(self.modules()):  # one learned metric for all: the model is exported with one
            if isinstance(getattr(part, "similarity", None), BilinearSimilarity):
                part.similarity = shared  # type: ignore[assignment]

    @classmethod
    def from_settings(cls, settings: LossSettings) -> WeightedSumLoss:
        """The sum that a recipe asks for.

        Args:
            settings: The group of the recipe that is read.

        Returns:
            Of the objectives in ``objectives``, each with its weight.

        Raises:
            ConfigurationError: For weights or objectives that make no sum.
        """
        parts = {name: (LOSSES[name](settings), weight) for name, weight in settings.objectives.items()}
        for name, (part, _) in parts.items():
            if getattr(part, "resolution_scales", None):
                raise ConfigurationError(f"objectives: {name!r} reads images at several sizes and cannot be summed")
        return cls(parts, settings.loss_balancing)

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, **context: Any) -> dict[str, Any]:
        """The weighted objectives over a batch.

        Args:
            image_embeds: ``[batch, dim]``, as the image tower gives them.
            text_embeds: ``[batch, dim]``; row i belongs to image i.
            **context: What objectives take besides, such as ``group_ids``; each gets what it takes.

        Returns:
            ``loss``, ``objective_losses`` and ``objective_weights`` (each name → scalar); ``image_to_text_loss`` and
            ``text_to_image_loss``, weighted, where all objectives give them; the first one's ``temperature`` and
            logits, where it gives them.
        """
        outputs = {
            name: call_objective(objective, image_embeds, text_embeds, **context)
            for name, objective in self.objectives.items()
        }
        losses = torch.stack([output["loss"] for output in outputs.values()])
        weights = self._weights(losses, image_embeds, text_embeds)
        total = (weights * losses).sum()  # a matrix product would be rounded to bf16 under autocast
        if self.balancing == "uncertainty":
            total = total + (self.weights * self.log_variances).sum().to(losses.dtype) / 2
        metrics = {}
        for name in ("image_to_text_loss", "text_to_image_loss"):
            if not all(name in output for output in outputs.values()):
                continue  # an objective of the user's own need only return its loss
            metrics[name] = (weights.detach() * torch.stack([output[name] for output in outputs.values()])).sum()
        first = next(iter(outputs.values()))
        return {
            "loss": total,
            **metrics,
            **{name: first[name] for name in ("temperature", "logits_per_image", "logits_per_text") if name in first},
            "objective_losses": {name: loss.detach() for name, loss in zip(outputs, losses, strict=True)},
            "objective_weights": {name: weight.detach() for name, weight in zip(outputs, weights, strict=True)},
        }

    def _weights(self, losses: Tensor, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        weights = self.weights.to(losses.dtype)
        if self.balancing == "uncertainty":
            return weights * (-self.log_variances).exp().to(losses.dtype)
        if self.balancing == "fixed":
            return weights
        sides = [side for side in (image_embeds, text_embeds) if side.requires_grad]
        if torch.is_grad_enabled() and sides:
            gradients = [torch.autograd.grad(loss, sides, retain_graph=True, materialize_grads=True) for loss in losses]
            norms = torch.stack(
                [torch.stack([part.float().square().sum() for part in parts]).sum().sqrt() for parts in gradients]
            )
            self.norms.copy_(torch.where(self.norms > 0, _MEMORY * self.norms + (1 - _MEMORY) * norms, norms))
        seen = (self.norms > 0).all()
        balanced = weights / self.norms.clamp_min(1e-12).to(losses.dtype)
        return torch.where(seen, balanced * weights.sum() / balanced.sum(), weights)


LOSSES.register("combined")(WeightedSumLoss.from_settings)
