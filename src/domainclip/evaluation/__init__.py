"""What a model can do, before and after: evaluators, their plots, and the report of a run."""

from domainclip.evaluation.classification import classification_metrics, zero_shot_logits
from domainclip.evaluation.evaluators import (
    DomainEvaluator,
    Embedder,
    EvaluationResult,
    Evaluator,
    RetrievalEvaluator,
    ZeroShotEvaluator,
)
from domainclip.evaluation.model_card import model_card
from domainclip.evaluation.prompts import DEFAULT_TEMPLATES, class_prompts, classifier_weights
from domainclip.evaluation.report import write_report

__all__ = [
    "DEFAULT_TEMPLATES",
    "DomainEvaluator",
    "Embedder",
    "EvaluationResult",
    "Evaluator",
    "RetrievalEvaluator",
    "ZeroShotEvaluator",
    "class_prompts",
    "classification_metrics",
    "classifier_weights",
    "model_card",
    "write_report",
    "zero_shot_logits",
]
