"""Scores and labels that tests of several domains share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from domainclip.config.domain_metric_settings import DomainMetricSettings
from domainclip.metrics.class_scores import ClassScores
from domainclip.metrics.domain_metrics import DomainMetrics

TEMPERATURE = 0.05


def some_scores(n: int = 120, classes: int = 4, seed: int = 0, groups: int | None = None) -> ClassScores:
    """Similarities on a coarse grid, so that there are ties, with classes of very different sizes."""
    rng = np.random.default_rng(seed)
    targets = rng.choice(classes, size=n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    targets[:classes] = np.arange(classes)
    similarities = rng.normal(0.2, 0.05, (n, classes))
    similarities[np.arange(n), targets] += 0.05
    ids = None if groups is None else [f"patient {index % groups}" for index in range(n)]
    labels = [f"class {index}" for index in range(classes)]
    return ClassScores.from_similarities(np.round(similarities, 2), targets, labels, TEMPERATURE, ids)


def scores_of(probabilities: list[list[float]], targets: list[int], labels: list[str], **more: Any) -> ClassScores:
    """With these very probabilities."""
    return ClassScores.from_similarities(np.log(probabilities), targets, labels, 1.0, **more)


def rows_of(scores: ClassScores, rows: np.ndarray) -> ClassScores:
    return replace(
        scores,
        log_probabilities=scores.log_probabilities[rows],
        targets=scores.targets[rows],
        predictions=scores.predictions[rows],
        groups=tuple(np.array(scores.groups, dtype=object)[rows]),
        disciplines=tuple(np.array(scores.disciplines, dtype=object)[rows]),
    )


# --- medicine ---


def flat_of(domain: Any, scores: ClassScores, **settings: Any) -> tuple[dict[str, float], dict[str, Any]]:
    shown = DomainMetrics(domain, lambda: TEMPERATURE, DomainMetricSettings(**settings)).score(scores, None)
    return {name: record.value for name, record in shown["metrics"].items()}, shown
