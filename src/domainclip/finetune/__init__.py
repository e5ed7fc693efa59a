"""The wiring: parts built from a recipe and run."""

from domainclip.finetune.controller import CLIPFinetuningController
from domainclip.finetune.run import RunOutcome, run_training

__all__ = ["CLIPFinetuningController", "RunOutcome", "run_training"]
