"""The symmetric cross-entropy of CLIP, with one positive per row or several.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3;
several positives as in Yang et al. 2022, "Unified Contrastive Learning in Image-Text-Label Space" (UniCL), eq. 3-4.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from domainclip.config import LossSettings
from domainclip.errors import ConfigurationError, ShapeError
from domainclip.losses.registry import LOSSES
from domainclip.similarity import SIMILARITIES, check_embeddings


class CLIPContrastiveLoss(nn.Module):
    """Cross-entropy of each picture over all texts, and of each text over all pictures, averaged.

        s_ij = sim(x_i, y_j) / τ                   i: picture, j: text, τ: temperature
        L    = ½ · mean_i CE(s_i·, i) + ½ · mean_j CE(s_·j, j)

    The temperature is fixed (default), learnable (``learnable_temp``: its logarithm is a parameter of the loss), or
    the model's: then the caller passes ``logit_scale`` = log(1/τ), and the loss's own is not used.

    Returns ``loss``, ``image_to_text_loss``, ``text_to_image_loss`` (scalars, in nats), ``temperature`` (scalar),
    ``logits_per_image`` ``[B, B]``, ``logits_per_text`` (its transpose), and ``target_entropy`` (scalar, in nats: the
    smallest loss the targets allow). Computed in float32 (float64 stays):
    bf16 logits at scale 64 would step by 0.25.

    Raises ``ShapeError`` for anything but two ``[B, D]`` tensors, ``ConfigurationError`` for a temperature ≤ 0.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        learnable_temp: bool = False,
        similarity_metric: str = "cosine",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigurationError(f"Temperature must be positive (temperature={temperature!r})")
        self.learnable_temp = learnable_temp
        self.similarity = SIMILARITIES[similarity_metric]
        self.label_smoothing = label_smoothing
        log_scale = torch.tensor(math.log(1 / temperature))
        if learnable_temp:
            self.log_scale: Tensor = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @classmethod
    def from_settings(cls, settings: LossSettings) -> CLIPContrastiveLoss:
        metric = settings.similarity_metric
        if metric == "cosine" and not settings.normalize_embeddings:
            metric = "dot"
        return cls(settings.temperature, settings.learnable_temp, metric, settings.label_smoothing)

    @property
    def temperature(self) -> Tensor:
        return (-self.log_scale).exp()

    @temperature.setter
    def temperature(self, value: float | Tensor) -> None:
        value = float(value)
        if not value > 0:
            raise ConfigurationError(f"Temperature must be positive (temperature={value!r})")
        with torch.no_grad():
            self.log_scale.fill_(math.log(1 / value))

    def targets(self, group_ids: Tensor | None, size: int, device: torch.device) -> Tensor:
        """Probability of each column being the row's match, ``[B, B]``: here the diagonal."""
        return torch.eye(size, device=device)

    def forward(
        self,
        image_embeds: Float[Tensor, "batch dim"],
        text_embeds: Float[Tensor, "batch dim"],
        group_ids: Int[Tensor, " batch"] | None = None,
        logit_scale: Tensor | None = None,
    ) -> dict[str, Tensor]:
        check_embeddings(image_embeds, text_embeds)
        if image_embeds.shape[0] != text_embeds.shape[0]:
            raise ShapeError(
                f"Batch size mismatch: {image_embeds.shape[0]} image and {text_embeds.shape[0]} text embeddings"
            )
        wide = torch.float64 if image_embeds.dtype == torch.float64 else torch.float32
        scale = (self.log_scale if logit_scale is None else logit_scale).to(wide).exp()
        with torch.autocast(image_embeds.device.type, enabled=False):
            logits = self.similarity(image_embeds.to(wide), text_embeds.to(wide)) * scale
            targets = self.targets(group_ids, len(logits), logits.device).to(wide)
            image_to_text = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
            text_to_image = F.cross_entropy(logits.T, targets.T, label_smoothing=self.label_smoothing)
        return {
            "loss": (image_to_text + text_to_image) / 2,
            "image_to_text_loss": image_to_text,
            "text_to_image_loss": text_to_image,
            "temperature": 1 / scale,
            "logits_per_image": logits,
            "logits_per_text": logits.T,
            "target_entropy": -(targets * targets.clamp_min(1e-12).log()).sum(dim=1).mean(),
        }


class MultiPositiveContrastiveLoss(CLIPContrastiveLoss):
    """The same with every row of equal ``group_ids`` a positive:

        t_ij = [g_i = g_j] / #{k : g_i = g_k}      (symmetric, rows and columns sum to 1)
        L    = ½ · mean_i CE(s_i·, t_i·) + ½ · mean_j CE(s_·j, t_·j)

    Without equal ids it is CLIP's loss exactly. With them, plain CLIP would push equal captions apart.
    """

    def targets(self, group_ids: Tensor | None, size: int, device: torch.device) -> Tensor:
        if group_ids is None:
            return super().targets(group_ids, size, device)
        if group_ids.shape != (size,):
            raise ShapeError(f"Batch size mismatch: group_ids has shape {tuple(group_ids.shape)}, expected ({size},)")
        same = (group_ids[:, None] == group_ids[None, :]).float()
        return same / same.sum(dim=1, keepdim=True)


LOSSES.register("contrastive")(CLIPContrastiveLoss.from_settings)
LOSSES.register("multi_positive")(MultiPositiveContrastiveLoss.from_settings)
