"""In which field's terms a run gives its results."""

from __future__ import annotations

import math

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.domain_metric_settings import FieldMetricSettings
from domainclip.metrics.domain_metrics import FieldMetrics
from domainclip.models import DualEncoder


def field_metrics(config: CLIPFinetuningConfig, encoder: DualEncoder, *, intervals: bool = True) -> FieldMetrics:
    """The figures of the field that ``evaluation_metrics`` names, or that the domain belongs to.

    What the recipe leaves unset is as the domain says. The probabilities are those of the model's temperature at the
    time of an evaluation. Raises ``ConfigurationError`` for an unknown domain.
    """
    domain = config.domain_config()
    preset = domain.recipe_values()
    values = {
        key: preset.get(key) if key in preset and not config.is_set(key) else getattr(config, key)
        for key in FieldMetricSettings.model_fields
    }
    settings = FieldMetricSettings(**values | ({} if intervals else {"bootstrap_resamples": 0}))
    named = settings.evaluation_metrics
    return FieldMetrics(
        domain.family if named == "auto" else named,
        lambda: math.exp(-float(encoder.logit_scale.detach())),
        settings,
        sigmoid=encoder.is_siglip,
        seed=config.seed,
    )
