"""Did it help? A verdict from two evaluations of the same rows, of what can be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from domainclip.evaluation.comparison import worsened
from domainclip.metrics.significance import PairedChange

DECIDING = ("acc1", "mAP", "i2t_R@1", "t2i_R@1")
"""Metrics with a test over single answers; the first that both evaluations have decides."""


@dataclass(frozen=True)
class Verdict:
    """Whether the second model is better.

    Args:
        outcome: ``unclear`` where the choice of rows alone may have produced the change, ``unknown`` where nothing
            could be tested.
        metric: The metric that says so, None where the two have none in common.
        change: Its change over the same items, None without single answers.
        worse: Metrics that fell, by however little, of those that the first model was any good at.
    """

    outcome: Literal["better", "worse", "unclear", "unknown"]
    metric: str | None
    change: PairedChange | None
    worse: tuple[str, ...]


def verdict(before: Mapping[str, float], after: Mapping[str, float], changes: Mapping[str, PairedChange]) -> Verdict:
    """The verdict, and what is worse.

    A figure that any constant answer reaches is not worth defending: a model that calls every part defective misses no
    defect.

    Args:
        before: Figures of the first model.
        after: Figures of the second.
        changes: Changes over the same items, by metric (``paired_changes``).

    Returns:
        The verdict of the first of ``DECIDING`` that has a change.
    """
    for_nothing = _had_for_nothing(before, after)
    worse = tuple(name for name in worsened(before, after) if name not in for_nothing)
    name = next((name for name in DECIDING if name in changes), None)
    if name is None:
        shared = (key for key in (*DECIDING, *after) if _known(before.get(key)) and _known(after.get(key)))
        return Verdict("unknown", next(shared, None), None, worse)
    change = changes[name]
    if math.isnan(change.p_value):
        return Verdict("unknown", name, change, worse)
    if not change.is_clear:
        return Verdict("unclear", name, change, worse)
    return Verdict("better" if change.change > 0 else "worse", name, change, worse)


_CONSTANT = 0.1
"""Recall less false alarms up to which a model tells defective from good hardly better than a constant answer does."""


def _had_for_nothing(before: Mapping[str, float], after: Mapping[str, float]) -> set[str]:
    """Figures whose fall says nothing, since the first model had them at the cost of others."""
    found: set[str] = set()
    recall, alarms = ([part.get(name, math.nan) for part in (before, after)] for name in _DETECTION)
    balance = [a - b for a, b in zip(recall, alarms, strict=True)]
    if balance[0] <= _CONSTANT and balance[1] > balance[0]:
        found |= {*_DETECTION}
    # One point of a curve is a choice: along the same curve either of the two is had for the other.
    sums = [sum(part.get(name, math.nan) for name in _ON_A_CURVE) for part in (before, after)]
    if sums[1] > sums[0]:
        found |= {*_ON_A_CURVE}
    return found


_DETECTION = ("mean_defect_recall", "false_alarm_rate")
_ON_A_CURVE = ("macro_sensitivity_at_youden", "macro_specificity_at_youden")


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
