"""What a model can do, before and after: evaluators and what they are made of."""

from domainclip.evaluation.class_hierarchy import ClassTree, class_tree_scores
from domainclip.evaluation.concepts import ConceptScores
from domainclip.evaluation.document_retrieval import DocumentRetrievalEvaluator
from domainclip.evaluation.error_analysis import build_case_study
from domainclip.evaluation.evaluators import (
    DomainEvaluator,
    RetrievalEvaluator,
    ZeroShotEvaluator,
)
from domainclip.evaluation.prompts import DEFAULT_TEMPLATES, class_prompts, classifier_weights
from domainclip.evaluation.protocols import Embedder, EvaluationResult, Evaluator
from domainclip.evaluation.terminology import TerminologyEvaluator
from domainclip.metrics.calibration import Calibration, calibration_summary, expected_calibration_error, fit_temperature
from domainclip.metrics.classification import classification_metrics, zero_shot_logits
from domainclip.metrics.domain_metrics import FieldMetrics

__all__ = [
    "DEFAULT_TEMPLATES",
    "Calibration",
    "ClassTree",
    "ConceptScores",
    "DocumentRetrievalEvaluator",
    "DomainEvaluator",
    "Embedder",
    "EvaluationResult",
    "Evaluator",
    "FieldMetrics",
    "RetrievalEvaluator",
    "TerminologyEvaluator",
    "ZeroShotEvaluator",
    "build_case_study",
    "calibration_summary",
    "class_prompts",
    "class_tree_scores",
    "classification_metrics",
    "classifier_weights",
    "expected_calibration_error",
    "fit_temperature",
    "zero_shot_logits",
]
