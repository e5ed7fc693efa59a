"""The domain metrics of a run."""

from __future__ import annotations

import math

from domainclip.config.domain_metric_settings import DomainMetricSettings
from domainclip.metrics.domain_metrics import DomainMetrics
from domainclip.models import DualEncoder
from domainclip.resolve import ResolvedInference


def build_domain_metrics(resolved: ResolvedInference, encoder: DualEncoder, *, intervals: bool = True) -> DomainMetrics:
    """The metrics of the domain that ``evaluation_metrics`` names, or of the recipe's own.

    What the recipe leaves unset is as the domain says. The probabilities are those of the model's temperature at the
    time of an evaluation. Raises ``ConfigurationError`` for an unknown domain.
    """
    settings = resolved.evaluation.group(DomainMetricSettings)
    if not intervals:
        settings.bootstrap_resamples = 0
    named = settings.evaluation_metrics
    return DomainMetrics(
        resolved.domain.family if named == "auto" else named,
        lambda: math.exp(-float(encoder.logit_scale.detach())),
        settings,
        sigmoid=encoder.is_siglip,
        seed=resolved.data.seed,
    )
