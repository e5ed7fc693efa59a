"""The training loop and what it is made of."""

from domainclip.training.assemble import TrainingParts, build_trainer
from domainclip.training.checkpoint import CheckpointStore
from domainclip.training.state import TrainContext, TrainingResult
from domainclip.training.step.gradcache import ContrastiveStep
from domainclip.training.trainer import Trainer
from domainclip.training.validation import Validation

__all__ = [
    "CheckpointStore",
    "ContrastiveStep",
    "TrainContext",
    "Trainer",
    "TrainingParts",
    "TrainingResult",
    "Validation",
    "build_trainer",
]
