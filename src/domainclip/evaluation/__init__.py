"""What a model can do, before and after: evaluators and what they are made of."""

from domainclip.evaluation.protocols import Embedder, EvaluationResult, Evaluator
from domainclip.evaluation.registry import EVALUATORS, EvaluationContext

__all__ = ["EVALUATORS", "Embedder", "EvaluationContext", "EvaluationResult", "Evaluator"]
