"""How the loop has its present weights validated."""

from __future__ import annotations

from collections.abc import Callable

from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.inference import EmbeddingEngine
from domainclip.pipelines.reference_sets import ReferenceSets
from domainclip.training import Validation


def validation_by(
    evaluator: DomainEvaluator,
    engine: EmbeddingEngine,
    reference_sets: ReferenceSets | None = None,
) -> Callable[[], Validation]:
    """A callable for ``Trainer``. ``reference_sets`` adds what is left of the general knowledge, which chooses no
    checkpoint."""

    def validate() -> Validation:
        result = evaluator.evaluate(engine)
        metrics, primary = result.metrics, evaluator.primary_metric
        if reference_sets is not None:
            metrics = metrics | reference_sets.during()
        return Validation(metrics, primary, evaluator.greater_is_better, result.records[primary].standard_error)

    return validate
