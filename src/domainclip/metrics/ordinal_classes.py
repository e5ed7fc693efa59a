"""Ordinal classes: a miss by one counts less than a miss by three."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from domainclip.errors import ConfigurationError
from domainclip.metrics.class_scores import ClassScores
from domainclip.metrics.domain_part import DomainPart
from domainclip.metrics.sums import sums_of_scores
from domainclip.registry import nearest


def with_kappa(part: DomainPart, scores: ClassScores, label_order: Sequence[str] | None) -> DomainPart:
    """A domain's metrics and quadratic kappa, where ``label_order`` says that the classes are ordinal.

    Raises ``ConfigurationError`` for a ``label_order`` that lacks a class.

    Args:
        part: The domain's figures.
        scores: Class scores.
        label_order: From the lowest to the highest, None for classes without an order.

    Returns:
        The figures.
    """
    if label_order is None:
        return part
    kappa = sums_of_scores(scores, ("quadratic_kappa",), positions_in_order(scores.labels, label_order))
    return replace(part, names=[*part.names, "quadratic_kappa"], panels=[*part.panels, kappa])


def positions_in_order(labels: Sequence[str], label_order: Sequence[str]) -> Int[np.ndarray, " labels"]:
    """Each label's place in the order, from 0. The order may name classes that no row has.

    Raises ``ConfigurationError`` for a label that the order lacks.

    Args:
        labels: The classes.
        label_order: From the lowest to the highest.

    Returns:
        The places.
    """
    index_of = {label: index for index, label in enumerate(label_order)}
    for label in labels:
        if label not in index_of:
            guess = nearest(label, label_order)
            raise ConfigurationError(
                f"label_order lacks the class {label!r}{f' (it has {guess!r})' if guess else ''}: name every class "
                "once, from the lowest to the highest"
            )
    return np.array([index_of[label] for label in labels])
