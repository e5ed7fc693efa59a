"""The sigmoid objective of SigLIP: every pair of the batch is a yes-or-no question of its own.

Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", eq. 1.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from domainclip.losses.objective import CHUNK_ENTRIES, ContrastiveObjective, RowLoss, Rows, check_batch
from domainclip.losses.registry import LOSSES

_BISECTIONS = 40


class SigmoidContrastiveLoss(ContrastiveObjective):
    """Logistic regression on all B² pairs, with z_ij = 1 where text j describes image i and -1 elsewhere:

        L = - 1/B · Σ_i Σ_j log σ(z_ij · (sim(x_i, y_j) / τ + b))

    ``bias`` b: the model's own where the caller passes ``logit_bias`` (SigLIP has one), or this number, or, with None,
    *set from the first training batch*: then b solves Σ_ij σ(s_ij + b) = Σ_ij [z_ij = 1], the condition that the
    intercept of a fitted logistic regression meets. A softmax model's similarities start far from it (a whole batch of
    near-certain matches), and the first steps would do nothing but push everything apart. Then b is learned.

    Both directions are the same sum, so ``image_to_text_loss`` equals ``text_to_image_loss``.
    """

    symmetric = True
    recipe_keys: ClassVar = {"bias": "sigmoid_bias"}
    rate_factor = 100.0
    """The bias learns this many times faster than the towers: it is one number on a scale of logits."""

    def __init__(
        self,
        temperature: float = 0.07,
        learnable_temp: bool = False,
        similarity_metric: Any = "cosine",
        bias: float | None = None,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(temperature, learnable_temp, similarity_metric, chunk_size=chunk_size)
        self.bias = nn.Parameter(torch.tensor(0.0 if bias is None else float(bias)))
        self.bias.rate_factor = self.rate_factor  # type: ignore[attr-defined]
        self.bias_is_set = bias is not None

    # Not a buffer: reading one back from an accelerator at every step would make the host wait for it.
    def get_extra_state(self) -> dict[str, bool]:
        """Whether the bias was set from a first batch, for ``state_dict``.

        Returns:
            One entry.
        """
        return {"bias_is_set": self.bias_is_set}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        """Take back what ``get_extra_state`` gave.

        Args:
            state: That.
        """
        self.bias_is_set = state["bias_is_set"]

    def row_loss(self, rows: Rows, bias: Tensor | None = None) -> RowLoss:
        """Log-sigmoid of each pair, positive or negative.

        Args:
            rows: Similarities of some rows with all candidates, and which of these are positives.
            bias: Added to the scaled similarities.

        Returns:
            A loss for each row.
        """
        logits = rows.logits + (self.bias if bias is None else bias)
        sign = torch.where(rows.positive, 1.0, -1.0).to(logits.dtype)
        return -F.logsigmoid(sign * logits).sum(dim=1), {}

    def forward(
        self,
        image_embeds: Float[Tensor, "batch dim"],
        text_embeds: Float[Tensor, "batch dim"],
        group_ids: Int[Tensor, " batch"] | None = None,
        logit_scale: Float[Tensor, ""] | None = None,
        progress: float = 1.0,
        logit_bias: Float[Tensor, ""] | None = None,
    ) -> dict[str, Tensor]:
        """As every objective, and ``bias`` (scalar).

        Args:
            image_embeds: ``[batch, dim]``, as the image tower gives them.
            text_embeds: ``[batch, dim]``, as the text tower gives them; row i belongs to image i.
            group_ids: ``[batch]``; rows of one group are positives of each other. None: each row is a group of its own.
            logit_scale: The model's logarithm of the inverse temperature, which takes the place of the objective's own.
            progress: How much of the training is done, from 0 to 1.
            logit_bias: The model's bias, which takes the place of the objective's own.

        Returns:
            ``loss``, ``image_to_text_loss``, ``text_to_image_loss``, ``temperature`` and ``bias`` among others.
        """

        def row_loss(rows: Rows) -> RowLoss:
            return self.row_loss(rows, logit_bias)

        check_batch(image_embeds, text_embeds, group_ids)  # before the bias is set from them
        if logit_bias is None and not self.bias_is_set and self.training:
            self.set_bias(image_embeds, text_embeds, group_ids, logit_scale)
        output = self.contrast(image_embeds, text_embeds, group_ids, logit_scale, progress, row_loss)
        return {**output, "bias": self.bias if logit_bias is None else logit_bias.reshape(())}  # SigLIP's has shape [1]

    @torch.no_grad()
    def set_bias(
        self, image_embeds: Tensor, text_embeds: Tensor, group_ids: Tensor | None, logit_scale: Tensor | None
    ) -> None:
        """Set b so that as many pairs are expected to match as do, by bisection.

        Some images of a large batch stand for all, since B × B may not fit, but against *all* its texts: the bias
        falls with every further candidate. A batch that cannot tell (all pairs match, or NaN) leaves b for the next.

        Args:
            image_embeds: ``[batch, dim]``, as the image tower gives them.
            text_embeds: ``[batch, dim]``, as the text tower gives them; row i belongs to image i.
            group_ids: ``[batch]``; rows of one group are positives of each other. None: each row is a group of its own.
            logit_scale: The model's logarithm of the inverse temperature, which takes the place of the objective's own.
        """
        rows = max(1, min(len(image_embeds), CHUNK_ENTRIES // len(text_embeds)))
        wide = torch.float64 if image_embeds.dtype == torch.float64 else torch.float32
        images, texts = image_embeds[:rows].to(wide), text_embeds.to(wide)
        scale = self.own_scale().to(wide) if logit_scale is None else logit_scale.to(wide).exp()
        groups = torch.arange(len(texts), device=texts.device) if group_ids is None else group_ids
        with torch.autocast(images.device.type, enabled=False):
            logits = self.similarity(images, texts) * scale
        wanted = (groups[:rows, None] == groups[None, :]).sum().to(wide)
        # At -max - 30 no pair is expected to match, at -min + 30 every one is.
        low, high = -logits.amax() - 30, -logits.amin() + 30
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            too_many = torch.sigmoid(logits + middle).sum() > wanted
            low, high = torch.where(too_many, low, middle), torch.where(too_many, middle, high)
        found = (low + high) / 2
        if bool(found.isfinite() & (wanted < logits.numel())):
            self.bias.copy_(found)
            self.bias_is_set = True


LOSSES.register("sigmoid")(SigmoidContrastiveLoss.from_settings)
