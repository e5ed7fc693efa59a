"""Recipe, domain, model, data and machine brought together: what the user left unset is decided, with reasons."""

from domainclip.resolve.resolve import DataFacts, Decision, ModelFacts, contrastive_batch, resolve, steps_per_epoch
from domainclip.resolve.steps import batch_schedule, resolved_steps

__all__ = [
    "DataFacts",
    "Decision",
    "ModelFacts",
    "batch_schedule",
    "contrastive_batch",
    "resolve",
    "resolved_steps",
    "steps_per_epoch",
]
