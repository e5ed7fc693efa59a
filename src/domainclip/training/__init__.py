"""The training loop and what it is made of."""

from domainclip.training.checkpoint import CheckpointStore
from domainclip.training.step.gradcache import ContrastiveStep
from domainclip.training.trainer import Trainer, TrainingResult, Validation

__all__ = ["CheckpointStore", "ContrastiveStep", "Trainer", "TrainingResult", "Validation"]
