"""What the metrics of a domain hand over to be resampled and shown, and what all domains share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from domainclip.errors import ConfigurationError
from domainclip.metrics.bootstrap import Figures
from domainclip.metrics.class_scores import ClassScores
from domainclip.metrics.sums import sums_of_scores
from domainclip.registry import nearest


@dataclass(frozen=True)
class DomainPart:
    """``names``: figures of the whole set, in the order to show; ``per_label``: those of each label. ``panels`` compute
    them. ``notes`` are sentences without a full stop; ``matrix`` is ready for a report."""

    names: Sequence[str]
    panels: Sequence[Figures]
    per_label: Sequence[str] = ()
    notes: Sequence[str] = ()
    matrix: dict[str, Any] = field(default_factory=dict)


def absent_note(scores: ClassScores, consequence: str) -> list[str]:
    """A sentence that names the classes without an image (or with every image), where there are any.

    Args:
        scores: True classes.
        consequence: What follows, as the end of the sentence.

    Returns:
        One sentence or none.
    """
    support = scores.support
    missing = [scores.labels[number] for number in np.flatnonzero((support == 0) | (support == support.sum()))]
    if not missing:
        return []
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return [f"No image, or every image, is of {shown}: {consequence}"]


Question = tuple[Float[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]
"""Scores, higher being more likely one, and whether each row is one."""


def one_against_the_rest(scores: ClassScores) -> dict[str, Question]:
    """Each class as a yes-or-no question.

    Args:
        scores: Class scores.

    Returns:
        Log-odds and truth by label.
    """
    return {label: (scores.log_odds([index]), scores.targets == index) for index, label in enumerate(scores.labels)}


def with_kappa(part: DomainPart, scores: ClassScores, label_order: Sequence[str] | None) -> DomainPart:
    """A domain's metrics and quadratic kappa, where ``label_order`` says that the classes are ordinal.

    Args:
        part: The domain's figures.
        scores: Class scores.
        label_order: From the lowest to the highest, None for classes without an order.

    Returns:
        The figures.

    Raises:
        ConfigurationError: ``label_order`` lacks a class.
    """
    if label_order is None:
        return part
    kappa = sums_of_scores(scores, ("quadratic_kappa",), positions_in_order(scores.labels, label_order))
    return replace(part, names=[*part.names, "quadratic_kappa"], panels=[*part.panels, kappa])


def positions_in_order(labels: Sequence[str], label_order: Sequence[str]) -> Int[np.ndarray, " labels"]:
    """Each label's place in the order, from 0. The order may name classes that no row has.

    Args:
        labels: The classes.
        label_order: From the lowest to the highest.

    Returns:
        The places.

    Raises:
        ConfigurationError: The order lacks a label.
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
