"""What a model can do, before and after: evaluators and what they are made of."""

from domainclip.evaluation.class_hierarchy import ClassHierarchy, class_hierarchy_scores
from domainclip.evaluation.document_retrieval import DocumentRetrievalEvaluator
from domainclip.evaluation.error_analysis import build_error_analysis
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.evaluation.protocols import Embedder, EvaluationResult, Evaluator
from domainclip.evaluation.registry import EVALUATORS, EvaluationContext
from domainclip.evaluation.retrieval import RetrievalEvaluator
from domainclip.evaluation.terminology import TerminologyEvaluator
from domainclip.evaluation.zero_shot import ZeroShotEvaluator
from domainclip.inference.prompts import DEFAULT_TEMPLATES, class_prompts, classifier_weights
from domainclip.metrics.calibration import Calibration, calibration_summary, expected_calibration_error, fit_temperature
from domainclip.metrics.classification import classification_metrics, zero_shot_logits
from domainclip.metrics.domain_metrics import DomainMetrics

__all__ = [
    "DEFAULT_TEMPLATES",
    "EVALUATORS",
    "Calibration",
    "ClassHierarchy",
    "DocumentRetrievalEvaluator",
    "DomainEvaluator",
    "DomainMetrics",
    "Embedder",
    "EvaluationContext",
    "EvaluationResult",
    "Evaluator",
    "RetrievalEvaluator",
    "TerminologyEvaluator",
    "ZeroShotEvaluator",
    "build_error_analysis",
    "calibration_summary",
    "class_hierarchy_scores",
    "class_prompts",
    "classification_metrics",
    "classifier_weights",
    "expected_calibration_error",
    "fit_temperature",
    "zero_shot_logits",
]
