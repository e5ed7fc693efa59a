"""Gain in the domain against loss outside it: which of several models to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from domainclip.errors import ConfigurationError

_TOLERANCE = 1e-9  # rounding must not decide on which side of a limit a figure lies


@dataclass(frozen=True)
class TradeOffPoint:
    """One model between the initial one (``alpha`` 0) and the trained one (1). ``domain`` and ``reference``: their
    scores in [0, 1], of validation rows; ``sets``: the score of each reference set, whose mean ``reference`` is."""

    alpha: float
    domain: float
    reference: float
    sets: Mapping[str, float]


@dataclass(frozen=True)
class TradeOffChoice:
    """``gain``: what was won in the domain. ``gain_kept``: as a fraction of what the trained model has won, None where
    that is nothing. ``forgetting``: what the reference sets have lost. ``within_limits``: whether both limits are
    kept."""

    point: TradeOffPoint
    gain: float
    gain_kept: float | None
    forgetting: float
    within_limits: bool
    reason: str


def pareto_front(points: Sequence[TradeOffPoint]) -> list[TradeOffPoint]:
    """Those that no other one beats in one score without losing in the other; by ``alpha``.

    Args:
        points: Models.

    Returns:
        Those of the front.
    """
    front = [
        point
        for point in points
        if not any(
            other.domain >= point.domain
            and other.reference >= point.reference
            and (other.domain > point.domain or other.reference > point.reference)
            for other in points
        )
    ]
    return sorted(front, key=lambda point: point.alpha)


def choose_trade_off(
    points: Sequence[TradeOffPoint], max_forgetting: float = 0.03, min_gain_kept: float = 0.9
) -> TradeOffChoice:
    """The highest domain score among the points that keep both limits; equal ones: the higher score on the reference
    sets.

    Where no point keeps both: that one of the Pareto front that misses them by least (the root of the squared sum of
    what is lost too much and gained too little, in the scores' units).

    Args:
        points: Models, both ends (``alpha`` 0 and 1) among them.
        max_forgetting: What the reference sets may lose, in the scores' units.
        min_gain_kept: Least gain, as a fraction of what the trained model has won.

    Returns:
        The choice.

    Raises:
        ConfigurationError: An end, ``alpha`` 0 or 1, is missing.
    """
    ends = {point.alpha: point for point in points}
    if 0.0 not in ends or 1.0 not in ends:
        raise ConfigurationError("A trade-off is chosen between the initial model (alpha 0) and the trained one (1)")
    start, full = ends[0.0], ends[1.0]
    gained = full.domain - start.domain
    wanted = min_gain_kept * gained if gained > 0 else gained

    def missed(point: TradeOffPoint) -> float:
        too_much = start.reference - point.reference - max_forgetting
        too_little = wanted - (point.domain - start.domain)
        return math.hypot(*(value if value > _TOLERANCE else 0.0 for value in (too_much, too_little)))

    within = [point for point in points if missed(point) == 0]
    if within:
        chosen = max(within, key=lambda point: (point.domain, point.reference, -point.alpha))
    else:
        chosen = min(pareto_front(points), key=lambda point: (missed(point), -point.domain, point.alpha))
    limits = f"at most {_points(max_forgetting)} lost and at least {min_gain_kept:.0%} of the gain kept"
    if within:
        reason = f"the highest domain score of the {len(within)} of {len(points)} models with {limits}"
    else:
        reason = f"no model of {len(points)} has {limits}: this one of the Pareto front misses it by least"
    if gained <= 0:
        reason += "; the training itself gained nothing on these rows"
    return _outcome(chosen, start, full, bool(within), reason)


def given_trade_off(
    points: Sequence[TradeOffPoint], alpha: float, max_forgetting: float = 0.03, min_gain_kept: float = 0.9
) -> TradeOffChoice:
    """What the point at ``alpha``, which somebody else has chosen, costs and gains; ``points`` as above.

    Args:
        points: Models, both ends among them.
        alpha: The chosen one.
        max_forgetting: What the reference sets may lose.
        min_gain_kept: As a fraction of what was gained.

    Returns:
        The choice.
    """
    by_alpha = {point.alpha: point for point in points}
    found = _outcome(by_alpha[alpha], by_alpha[0.0], by_alpha[1.0], False, "wise_ft_alpha is set")
    within = found.forgetting <= max_forgetting + _TOLERANCE
    if found.gain_kept is not None:
        within = within and found.gain_kept >= min_gain_kept - _TOLERANCE
    return replace(found, within_limits=within)


def _outcome(
    chosen: TradeOffPoint, start: TradeOffPoint, full: TradeOffPoint, within: bool, reason: str
) -> TradeOffChoice:
    gain, gained = chosen.domain - start.domain, full.domain - start.domain
    fraction = gain / gained if gained > 0 else None
    return TradeOffChoice(chosen, gain, fraction, start.reference - chosen.reference, within, reason)


def _points(fraction: float) -> str:
    return f"{fraction * 100:g} point{'s' if fraction != 0.01 else ''}"
