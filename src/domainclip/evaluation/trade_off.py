"""Gain in the domain against loss outside it: which of several models to keep, and the plot of the choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter

from domainclip.errors import ConfigurationError
from domainclip.reports.plots.run import AFTER, BEFORE
from domainclip.reports.plots.style import save

_TOLERANCE = 1e-9  # rounding must not decide on which side of a limit a figure lies
_CHOSEN = "#D55E00"


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
    """Those that no other one beats in one score without losing in the other; by ``alpha``."""
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
    what is lost too much and gained too little, in the scores' units). ``points`` must hold both ends.
    Raises ``ConfigurationError`` where they do not.
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
    """What the point at ``alpha``, which somebody else has chosen, costs and gains; ``points`` as above."""
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


def plot_pareto(trade_off: Mapping[str, Any], path: Path) -> bool:
    """Reference sets' score against the domain's on validation rows, every alpha, the chosen one marked. False for
    fewer than two.

    ``trade_off``: as a run's report holds it (``points``, ``chosen_alpha``, ``max_forgetting``, ``min_gain_kept``).
    """
    points = [TradeOffPoint(p["alpha"], p["domain"], p["reference"], p["sets"]) for p in trade_off.get("points") or []]
    if len(points) < 2:
        return False
    ends = {point.alpha: point for point in points}
    front = pareto_front(points)
    figure = Figure(figsize=(7.5, 5.0), layout="constrained")
    axis = figure.subplots()
    by_alpha = sorted(points, key=lambda point: point.alpha)
    axis.plot(
        [p.domain for p in by_alpha], [p.reference for p in by_alpha], color=BEFORE, linewidth=1, alpha=0.7, zorder=1
    )
    for group, colour, marker, label in (
        ([p for p in points if p not in front], BEFORE, "o", "beaten by another one"),
        (front, AFTER, "o", "Pareto front"),
        ([p for p in points if p.alpha == trade_off["chosen_alpha"]], _CHOSEN, "*", "chosen"),
    ):
        if group:
            axis.scatter(
                [p.domain for p in group],
                [p.reference for p in group],
                color=colour,
                marker=marker,
                s=220 if marker == "*" else 32,
                label=label,
                zorder=3 if marker == "*" else 2,
            )
    _limits(axis, trade_off, ends)
    _name_points(axis, by_alpha, trade_off["chosen_alpha"])
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.margins(x=0.1, y=0.12)
    axis.set(
        title="What is gained in the domain and what is kept outside it (validation rows)",
        xlabel=f"domain: {trade_off.get('domain_metric', 'score')}",
        ylabel=f"reference sets: mean over {len(points[0].sets)} data set{'s' if len(points[0].sets) != 1 else ''}",
    )
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#E5E5E5", linewidth=0.6)
    axis.set_axisbelow(True)
    save(figure, path)
    return True


def _limits(axis: Any, trade_off: Mapping[str, Any], ends: Mapping[float, TradeOffPoint]) -> None:
    """Lines that the chosen model should lie above and to the right of."""
    start, full = ends.get(0.0), ends.get(1.0)
    if start is None or full is None or trade_off.get("max_forgetting") is None:
        return
    lost, kept = trade_off["max_forgetting"], trade_off["min_gain_kept"]
    style = {"color": "#009E73", "linewidth": 1.1}
    axis.axhline(start.reference - lost, **style, linestyle="--", label=f"limit: {_points(lost)} lost")
    if full.domain > start.domain:
        place = start.domain + kept * (full.domain - start.domain)
        axis.axvline(place, **style, linestyle=":", label=f"limit: {kept:.0%} of the gain kept")


def _name_points(axis: Any, points: Sequence[TradeOffPoint], chosen: float) -> None:
    """Each alpha beside its point; of several points that lie together the first, the last and the chosen are named."""
    width = max(p.domain for p in points) - min(p.domain for p in points) or 1.0
    height = max(p.reference for p in points) - min(p.reference for p in points) or 1.0
    right = max(p.domain for p in points)
    named: list[TradeOffPoint] = []
    first = [p for p in points if p.alpha in (chosen, 0.0, 1.0)]
    for point in [*first, *(p for p in points if p not in first)]:
        near = any(
            math.hypot((point.domain - p.domain) / width, (point.reference - p.reference) / height) < 0.07
            for p in named
        )
        if near and point not in first:
            continue
        named.append(point)
        # To the right of the last points the legend begins; the curve comes to them from the upper left.
        at_the_edge = right - point.domain < 0.1 * width
        axis.annotate(
            f"α = {point.alpha:.4g}",
            (point.domain, point.reference),
            textcoords="offset points",
            xytext=(-9, -7) if at_the_edge else (7, 7),
            ha="right" if at_the_edge else "left",
            va="top" if at_the_edge else "baseline",
            fontsize=8,
            fontweight="bold" if point.alpha == chosen else "normal",
            zorder=4,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _points(fraction: float) -> str:
    return f"{fraction * 100:g} point{'s' if fraction != 0.01 else ''}"
