"""What a model can do, before and after: evaluators, their plots, and the report of a run."""

from domainclip.evaluation.calibration import (
    Calibration,
    calibration_summary,
    expected_calibration_error,
    fit_temperature,
)
from domainclip.evaluation.case_study import build_case_study
from domainclip.evaluation.case_study_page import write_case_study
from domainclip.evaluation.class_tree import ClassTree, class_tree_scores
from domainclip.evaluation.classification import classification_metrics, zero_shot_logits
from domainclip.evaluation.concepts import ConceptScores
from domainclip.evaluation.document_retrieval import DocumentRetrievalEvaluator
from domainclip.evaluation.evaluators import (
    DomainEvaluator,
    RetrievalEvaluator,
    ZeroShotEvaluator,
)
from domainclip.evaluation.field_metrics import FieldMetrics
from domainclip.evaluation.model_card import model_card
from domainclip.evaluation.prompts import DEFAULT_TEMPLATES, class_prompts, classifier_weights
from domainclip.evaluation.protocols import Embedder, EvaluationResult, Evaluator
from domainclip.evaluation.report import write_report
from domainclip.evaluation.terminology import TerminologyEvaluator

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
    "model_card",
    "write_case_study",
    "write_report",
    "zero_shot_logits",
]
