"""What a model can do, before and after: evaluators, their plots, and the report of a run."""

from domainclip.evaluation.calibration import (
    Calibration,
    calibration_summary,
    expected_calibration_error,
    fit_temperature,
)
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
    "Calibration",
    "DomainEvaluator",
    "Embedder",
    "EvaluationResult",
    "Evaluator",
    "RetrievalEvaluator",
    "ZeroShotEvaluator",
    "calibration_summary",
    "class_prompts",
    "classification_metrics",
    "classifier_weights",
    "expected_calibration_error",
    "fit_temperature",
    "model_card",
    "write_report",
    "zero_shot_logits",
]
