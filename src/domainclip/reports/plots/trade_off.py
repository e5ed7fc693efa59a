"""Gain in the domain against loss outside it: the models between the initial weights and the trained ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter

from domainclip.reports.plots.run import AFTER, BEFORE
from domainclip.reports.plots.style import GREEN, ORANGE, legend_beside, one_plot
from domainclip.reports.schema.run import TradeOff, TradeOffPoint
from domainclip.reports.text import title


def plot_trade_off(trade_off: TradeOff, path: Path) -> bool:
    """Reference sets' score against the domain's on validation rows, every alpha, the chosen one marked.

    Args:
        trade_off: As a run's report holds it.
        path: The PNG to write.

    Returns:
        Whether there were the two points that a line takes.
    """
    points = trade_off.points
    if len(points) < 2:
        return False
    ends = {point.alpha: point for point in points}
    front = [point for point in points if point.on_front]
    with one_plot(path, 7.5, 5.0) as axis:
        by_alpha = sorted(points, key=lambda point: point.alpha)
        line = [(p.domain, p.reference) for p in by_alpha]
        axis.plot(*zip(*line, strict=True), color=BEFORE, linewidth=1, alpha=0.7, zorder=1)
        for group, colour, marker, label in (
            ([p for p in points if p not in front], BEFORE, "o", "beaten by another one"),
            (front, AFTER, "o", "Pareto front"),
            ([p for p in points if p.alpha == trade_off.chosen_alpha], ORANGE, "*", "chosen"),
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
        _name_points(axis, by_alpha, trade_off.chosen_alpha)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.margins(x=0.1, y=0.12)
        axis.set(
            title="What is gained in the domain and what is kept outside it (validation rows)",
            xlabel=f"domain: {title(trade_off.domain_metric or 'score')}",
            ylabel=f"reference sets: mean over {len(points[0].sets)} data set{'s' if len(points[0].sets) != 1 else ''}",
        )
        legend_beside(axis, fontsize=9)
    return True


def _limits(axis: Axes, trade_off: TradeOff, ends: Mapping[float, TradeOffPoint]) -> None:
    """Lines that the chosen model should lie above and to the right of."""
    start, full = ends.get(0.0), ends.get(1.0)
    if start is None or full is None:
        return
    lost, kept = trade_off.max_forgetting, trade_off.min_gain_kept
    label = f"limit: {_points(lost)} lost"
    axis.axhline(start.reference - lost, color=GREEN, linewidth=1.1, linestyle="--", label=label)
    if full.domain > start.domain:
        place = start.domain + kept * (full.domain - start.domain)
        label = f"limit: {kept:.0%} of the gain kept"
        axis.axvline(place, color=GREEN, linewidth=1.1, linestyle=":", label=label)


def _name_points(axis: Axes, points: Sequence[TradeOffPoint], chosen: float) -> None:
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
