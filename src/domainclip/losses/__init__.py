"""Contrastive objectives: pure maths on embeddings."""

from domainclip.losses.contrastive import CLIPContrastiveLoss, MultiPositiveContrastiveLoss
from domainclip.losses.registry import LOSSES, build_loss

__all__ = ["LOSSES", "CLIPContrastiveLoss", "MultiPositiveContrastiveLoss", "build_loss"]
