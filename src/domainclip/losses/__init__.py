"""Contrastive objectives: pure maths on embeddings."""

from domainclip.losses.contrastive import CLIPContrastiveLoss, MultiPositiveContrastiveLoss
from domainclip.losses.domain_specific import DomainSpecificLoss
from domainclip.losses.hard_negative import HardNegativeMiningLoss
from domainclip.losses.multi_resolution import MultiResolutionLoss
from domainclip.losses.multi_scale import MultiScaleLoss
from domainclip.losses.objective import ContrastiveObjective, Rows
from domainclip.losses.registry import LOSSES, build_loss, call_objective
from domainclip.losses.sigmoid import SigmoidContrastiveLoss
from domainclip.losses.temperature import TemperatureScheduler
from domainclip.losses.weighted_sum import WeightedSumLoss

__all__ = [
    "LOSSES",
    "CLIPContrastiveLoss",
    "ContrastiveObjective",
    "DomainSpecificLoss",
    "HardNegativeMiningLoss",
    "MultiPositiveContrastiveLoss",
    "MultiResolutionLoss",
    "MultiScaleLoss",
    "Rows",
    "SigmoidContrastiveLoss",
    "TemperatureScheduler",
    "WeightedSumLoss",
    "build_loss",
    "call_objective",
]
