"""How similar hits and misses are, and recall against the number of answers looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, PercentFormatter

from domainclip.metrics.separation import separation
from domainclip.reports.plots.style import BLUE, GREY, ORANGE, curve_style, heading, save, short_label, tidy
from domainclip.words import counted

_FEW_PAIRS = 30  # up to which each pair gets a mark of its own: a histogram of them would be a guess
_MOST_MARKERS = 25
_DIRECTIONS = {"i2t": "image → text", "t2i": "text → image"}
_ROUND = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


def draw_alignment_distribution(hits: np.ndarray, misses: np.ndarray, title: str, path: Path) -> Path:
    """Fractions of the hits and of the misses by their similarity.

    Args:
        hits: Similarities of pairs that belong together.
        misses: Those of pairs that do not.
        title: The heading.
        path: The PNG to write.

    Returns:
        ``path``.
    """
    found = separation(hits, misses)
    low, high = min(hits.min(), misses.min()), max(hits.max(), misses.max())
    if high - low < 1e-6 * max(1.0, abs(low)):  # all equal: a bin must still have a width
        low, high = low - 0.05, high + 0.05
    smaller = min(hits.size, misses.size)
    edges = np.linspace(low, high, int(np.clip(2 * smaller ** (1 / 3), 24, 60)) + 1)  # Rice's rule
    figure = Figure(figsize=(7.5, 3.8))
    axis = figure.add_axes((0, 0, 1, 1))
    sides = (("belong together", hits, BLUE, "-", 0.025), ("do not", misses, ORANGE, "--", 0.06))
    for name, values, colour, line, height in sides:
        fractions = np.histogram(values, edges)[0] / values.size
        axis.stairs(fractions, edges, fill=True, color=colour, alpha=0.22)
        axis.stairs(
            fractions,
            edges,
            color=colour,
            linestyle=line,
            linewidth=1.6,
            label=f"{name}: {counted(values.size, 'pair')}, mean {values.mean():.3f}",
        )
        axis.axvline(values.mean(), color=colour, linestyle=":", linewidth=1.4)
        if values.size <= _FEW_PAIRS:
            axis.plot(
                values.ravel(),
                np.full(values.size, -height),
                "|",
                color=colour,
                markersize=9,
                transform=axis.get_xaxis_transform(),
                clip_on=False,
                markeredgewidth=1.6,
            )
    axis.set_xlim(low - (high - low) * 0.02, high + (high - low) * 0.02)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_ylabel("fraction of the pairs")
    axis.set_xlabel("similarity (dotted: means)", labelpad=8)
    if smaller <= _FEW_PAIRS:
        axis.tick_params(axis="x", pad=24)  # the marks of the single pairs come first
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    figures = f"AUROC {found.auroc:.3f} (chance 0.5), overlap {found.overlap:.1%} at threshold {found.threshold:.3g}"
    axis.set_title(heading(title, figures), fontsize=11, loc="left")
    tidy([axis])
    return save(figure, path)


def draw_recall_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    chance: tuple[np.ndarray, np.ndarray],
    n_candidates: tuple[int, int],
    title: str,
    path: Path,
) -> Path:
    """R@K against K.

    Args:
        curves: R@1…R@max_k for image → text and for text → image, by the model's name.
        chance: The same of a random order.
        n_candidates: Texts and images searched.
        title: The heading.
        path: The PNG to write.

    Returns:
        ``path``.
    """
    figure = Figure(figsize=(9.5, 3.8))
    axes = figure.add_axes((0, 0, 0.46, 1)), figure.add_axes((0.54, 0, 0.46, 1))
    names = ("image → text", "text → image")
    styles: list[dict[str, Any]] = [
        curve_style(index) | ({} if max(map(len, chance)) <= _MOST_MARKERS else {"marker": None})
        for index in range(len(curves))
    ]
    by_chance: dict[str, Any] = {"color": GREY, "linestyle": (0, (1, 1.5)), "linewidth": 1.6}
    for side, (axis, name) in enumerate(zip(axes, names, strict=True)):
        ks = np.arange(1, len(chance[side]) + 1)
        for recalls, style in zip(curves.values(), styles, strict=True):
            axis.plot(ks, recalls[side], **style)
        axis.plot(ks, chance[side], **by_chance)
        if len(ks) > 1:
            axis.set_xscale("log")
        ticks = [k for k in _ROUND if k <= len(ks)]
        axis.set_xticks(ticks, [f"{k:,}" for k in ticks])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(0, 1.03)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set_title(f"{name}, best of {n_candidates[side]:,}", fontsize=10)
        axis.set_xlabel("K (answers looked at)")
    axes[0].set_ylabel("R@K (fraction of queries with a hit)")
    tidy(axes)
    named = [*zip(curves.items(), styles, strict=True), (("chance", chance), by_chance)]
    handles = [
        Line2D(
            [], [], **style, label=f"{short_label(name, 84, 42)}\nR@1 {_fraction(texts[0])} / {_fraction(images[0])}"
        )
        for (name, (texts, images)), style in named
    ]
    axes[1].legend(handles=handles, frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.02, 1.02))
    figure.text(0, 1.09, heading(title), fontsize=11, va="bottom")
    return save(figure, path)


def draw_measured_recalls(curves: Mapping[str, np.ndarray], ks: Sequence[int], title: str, path: Path) -> Path:
    """R@K against K, of recalls that were measured before.

    Args:
        curves: R@K for each K, by the curve's name; "i2t" and "t2i" are written out.
        ks: The K, ascending.
        title: The heading.
        path: The PNG to write.

    Returns:
        ``path``.
    """
    figure = Figure(figsize=(5.5, 3.8))
    axis = figure.add_axes((0, 0, 1, 1))
    for index, (name, values) in enumerate(curves.items()):
        axis.plot(
            ks,
            values,
            label=short_label(_DIRECTIONS.get(name, name), 84, 42),
            **curve_style(index),
        )
    if len(ks) > 1:
        axis.set_xscale("log")
    axis.set_xticks(ks, [f"{k:,}" for k in ks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylim(0, 1.03)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_xlabel("K (answers looked at)")
    axis.set_ylabel("R@K (fraction of queries with a hit)")
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    axis.set_title(heading(title), fontsize=11, loc="left")
    tidy([axis])
    return save(figure, path)


def _fraction(value: float) -> str:
    return f"{value:.1%}" if value >= 0.01 or value == 0 else f"{value:.2%}"
