"""Recipe, domain, model, data and machine brought together: what the user left unset is decided, with reasons."""

from domainclip.resolve.facts import DataFacts, Decision, ModelFacts
from domainclip.resolve.resolve import resolve
from domainclip.resolve.run import ResolvedInference, ResolvedRun, objective_of, resolve_for_inference
from domainclip.resolve.schedule import batch_schedule, contrastive_batch, resolved_steps, steps_per_epoch

__all__ = [
    "DataFacts",
    "Decision",
    "ModelFacts",
    "ResolvedInference",
    "ResolvedRun",
    "batch_schedule",
    "contrastive_batch",
    "objective_of",
    "resolve",
    "resolve_for_inference",
    "resolved_steps",
    "steps_per_epoch",
]
