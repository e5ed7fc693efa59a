"""The use cases: each brings the parts together, from a recipe to a result."""

from domainclip.pipelines.controller import CLIPFinetuningController
from domainclip.pipelines.run import RunOutcome, run_training

__all__ = ["CLIPFinetuningController", "RunOutcome", "run_training"]
