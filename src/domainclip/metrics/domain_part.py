"""What the metrics of a domain hand over to be resampled and shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from domainclip.metrics.bootstrap import Figures
from domainclip.metrics.class_scores import ClassScores


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
