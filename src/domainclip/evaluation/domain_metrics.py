"""The metrics of a domain, from the answers of the classification and the retrieval."""

from __future__ import annotations

import math

from domainclip.config.domain_metric_settings import DomainMetricSettings
from domainclip.evaluation.protocols import Embedder, EvaluationResult
from domainclip.evaluation.registry import EVALUATORS, EvaluationContext
from domainclip.evaluation.retrieval import RetrievalEvaluator
from domainclip.evaluation.shared import SharedEmbedder
from domainclip.evaluation.zero_shot import ZeroShotEvaluator
from domainclip.metrics.class_scores import ClassScores
from domainclip.metrics.domain_metrics import DomainMetrics, RetrievalRanks


class DomainMetricsEvaluator:
    """AUROC and sensitivity, false alarms, R@10 and MRR: what the domain's field asks for, with intervals.

    Args:
        metrics: Turns class scores and ranks into the figures.
        zero_shot: Who classifies, None where nobody does.
        retrieval: Who ranks, None where nobody does.

    Raises:
        ConfigurationError: The settings do not fit the classes.
    """

    name = "domain_metrics"
    primary_metric = "acc1"
    greater_is_better = True

    def __init__(
        self, metrics: DomainMetrics, zero_shot: ZeroShotEvaluator | None, retrieval: RetrievalEvaluator | None
    ) -> None:
        self.metrics, self.zero_shot, self.retrieval = metrics, zero_shot, retrieval
        if zero_shot is not None:
            metrics.check(zero_shot.labels)

    def evaluate(self, embed: Embedder) -> EvaluationResult:
        """The figures, and under ``details["domain_metrics"]`` what a report shows of them.

        Args:
            embed: The model; where it is shared, nothing is embedded or ranked twice.

        Returns:
            The result.
        """
        asked = [part for part in (self.zero_shot, self.retrieval) if part is not None]
        shared = SharedEmbedder.over(embed, asked)
        classes: ClassScores | None = None
        ranks: RetrievalRanks | None = None
        if (part := self.zero_shot) is not None:
            similarities, _ = part.similarities(shared)
            classes = ClassScores.from_similarities(
                similarities, part.targets, part.labels, self.metrics.temperature(), part.groups, part.disciplines
            )
        if self.retrieval is not None:
            found = shared.result(self.retrieval).details["retrieval"]
            hits = self.retrieval.hits.numpy()
            ranks = RetrievalRanks(found["i2t_ranks"], found["t2i_ranks"], hits, self.retrieval.groups)
        shown = self.metrics.score(classes, ranks)
        return EvaluationResult(dict(shown["metrics"]), {"domain_metrics": shown})


@EVALUATORS.register("domain_metrics")
def _from_recipe(context: EvaluationContext) -> DomainMetricsEvaluator | None:
    """The metrics of the domain that ``evaluation_metrics`` names, or of the recipe's own.

    The probabilities are those of the model's temperature at the time of an evaluation.
    """
    session, resolved = context.session, context.resolved
    if session is None:
        return None
    encoder, settings = session.encoder, resolved.evaluation.group(DomainMetricSettings)
    settings = settings.model_copy(update={"bootstrap_resamples": context.resamples})
    named = settings.evaluation_metrics
    metrics = DomainMetrics(
        resolved.domain.family if named == "auto" else named,
        lambda: math.exp(-float(encoder.logit_scale.detach())),
        settings,
        sigmoid=encoder.is_siglip,
        seed=resolved.data.seed,
    )
    return DomainMetricsEvaluator(metrics, context.zero_shot, context.retrieval)
