"""Plots and console tables of an evaluation at several resolutions.

A plot is one PNG, written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from domainclip.evaluation.robustness import Agreement, Robustness
from domainclip.metrics.metric import METRICS
from domainclip.metrics.significance import wilson_interval
from domainclip.reports.plots.style import GREY, SERIES, curve_style, heading, legend_beside, one_plot, save, tidy
from domainclip.reports.schema.resolutions import AtResolution, ResolutionsReport

DRAWN = ("acc1", "mean_per_class_recall", "i2t_R@1", "t2i_R@1")
"""Metrics that are drawn, where the data give them; the table has the others."""

AGREEMENTS = {
    "mean_cosine": "mean cosine of the embeddings",
    "same_class": "images with the same predicted class",
    "same_caption": "images with the same nearest caption",
}

_SHORT = {"acc1": "acc1", "mean_per_class_recall": "recall", "i2t_R@1": "i2t R@1", "t2i_R@1": "t2i R@1"}

Figures = Mapping[str, float]


def plot_resolutions(rows: Sequence[AtResolution], path: Path, title: str, machine: str) -> Path:
    """Metrics against the image's resolution, and below it the throughput.

    Args:
        rows: The report's ``resolutions``.
        path: The PNG to write.
        title: What was evaluated.
        machine: What the throughput was measured on.

    Returns:
        ``path``.
    """
    places, scale = _places(rows)
    figure = Figure(figsize=(7.5, 6.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.7, 1])
    highest = _metric_curves(above, places, [row.metrics for row in rows])
    above.set(title=heading(title), ylabel="fraction (more is better)")
    _percent(above, highest)
    legend_beside(above, fontsize=9)
    rates = [row.images_per_second for row in rows]
    below.plot(places, rates, color=GREY, marker="o", linewidth=1.6)
    for place, rate in zip(places, rates, strict=True):
        below.annotate(_count(rate), (place, rate), xytext=(4, 5), textcoords="offset points", fontsize=8)
    below.set(
        ylabel="images a second",
        xlabel=heading(f"resolution of the image in pixels{scale} (speed on {machine})", width=60),
    )
    below.set_ylim(0, max(rates) * 1.2)
    _mark_resolutions([above, below], places, rows)
    tidy([above, below])
    return save(figure, path)


def plot_agreement(rows: Sequence[AtResolution], path: Path, title: str) -> Path:
    """How far the embeddings of another resolution agree with those of the model's own.

    Args:
        rows: The report's ``resolutions``.
        path: The PNG to write.
        title: What was evaluated.

    Returns:
        ``path``.
    """
    places, scale = _places(rows)
    with one_plot(path, 7.5, 3.8) as axis:
        for index, (name, label) in enumerate(AGREEMENTS.items()):
            values = [getattr(row.agreement, name) for row in rows]
            if None not in values:
                axis.plot(places, values, label=label, **curve_style(index))
        label = "agreement with the own resolution\n(1: nothing changes)"
        axis.set(title=heading(title), xlabel=f"resolution of the image in pixels{scale}", ylabel=label)
        legend_beside(axis, fontsize=9)
        _mark_resolutions([axis], places, rows)
    return path


def plot_robustness(robustness: Robustness, path: Path, title: str) -> Path:
    """One panel for each kind of corruption: the metrics from the untouched image on the left to the worst.

    Args:
        robustness: The report's ``robustness``.
        path: The PNG to write.
        title: What was evaluated.

    Returns:
        ``path``.
    """
    kinds = robustness.corruptions
    columns = min(2, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.3 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    clean = robustness.clean.metrics
    highest = 0.0
    for panel, (kind, found) in zip(panels, kinds.items(), strict=False):
        levels = found.levels
        places = range(len(levels) + 1)  # evenly spaced: the levels about double from one to the next
        highest = max(highest, _metric_curves(panel, places, [clean, *(level.metrics for level in levels)]))
        panel.set_xticks(places, ["untouched", *(f"{level.level:g}" for level in levels)], fontsize=9)
        panel.set_title(kind, fontsize=11)
        panel.set_xlabel(heading(found.unit, width=58), fontsize=9)
    _percent(panels[0], highest)  # the panels share the axis
    for panel in panels[len(kinds) :]:
        panel.set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel("fraction (more is better)")
    tidy(panels)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(2, len(labels)), frameon=False, fontsize=9)
    figure.suptitle(heading(title))
    return save(figure, path)


def _metric_curves(axis: Axes, places: Sequence[float], metrics: Sequence[Figures]) -> float:
    """Draws those of ``DRAWN`` that there are, the first with its 95 % interval; the highest fraction drawn."""
    names = [name for name in DRAWN if name in metrics[0]]
    for index, name in enumerate(names):
        values = [found[name] for found in metrics]
        label = METRICS[name].title
        if index == 0:
            label += "\n(band: 95 % interval)"
            ends = [_interval(found, name) for found in metrics]
            lows, highs = zip(*ends, strict=True)
            axis.fill_between(places, lows, highs, color=SERIES[0], alpha=0.13, linewidth=0)
        axis.plot(places, values, label=label, **curve_style(index))
    return max([*(found[name] for found in metrics for name in names), *(high for _, high in ends)])


def _interval(metrics: Figures, name: str) -> tuple[float, float]:
    trials = int(metrics["n_classified" if name == "acc1" else "n_images"])
    return wilson_interval(round(metrics[name] * trials), trials).ends


def _percent(axis: Axes, highest: float) -> None:
    """From 0 to a little above the highest fraction: differences among small fractions show, and heights stay
    comparable."""
    top = min(1.0, highest * 1.1)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.05 else 1))
    axis.set_ylim(0, top * 1.02)


def _places(rows: Sequence[AtResolution]) -> tuple[Sequence[float], str]:
    """Where the resolutions stand on the axis, and what to say of its scale: evenly spaced where their names would
    overlap otherwise."""
    resolutions = [row.resolution for row in rows]
    if min(b - a for a, b in pairwise(resolutions)) > 0.09 * (resolutions[-1] - resolutions[0]):
        return resolutions, ""
    return range(len(resolutions)), ", not to scale"


def _mark_resolutions(axes: Sequence[Axes], places: Sequence[float], rows: Sequence[AtResolution]) -> None:
    labels = []
    for place, row in zip(places, rows, strict=True):
        labels.append(f"{row.resolution}\n(own)" if row.native else str(row.resolution))
        if row.native:
            for axis in axes:
                axis.axvline(place, color=GREY, linestyle=":", linewidth=1)
    axes[-1].set_xticks(places, labels)


def _count(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def resolution_table(found: ResolutionsReport, title: str) -> Table:
    """Metrics and cost at each resolution, for the terminal.

    Args:
        found: The report.
        title: What was evaluated.

    Returns:
        The table.
    """
    rows = found.resolutions
    metrics = [name for name in DRAWN if name in rows[0].metrics]
    table = Table(title=escape(title))
    for column in ("resolution", *(_SHORT[name] for name in metrics), "images/s", "peak MiB"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            _resolution(row),
            *(f"{row.metrics[name]:.4f}" for name in metrics),
            f"{row.images_per_second:.1f}",
            f"{row.peak_memory_mb:.0f}",
        )
    return table


def agreement_table(rows: Sequence[AtResolution], native_resolution: int) -> Table:
    """How far the embeddings at each resolution agree with those at the model's own, and whether acc1 differs for
    certain.

    Args:
        rows: The report's ``resolutions``.
        native_resolution: The model's own, in pixels.

    Returns:
        The table.
    """
    table = Table(title=f"Against the model's own resolution, {native_resolution} pixels")
    for column in ("resolution", "cosine", "same class", "same caption", "acc1", "p (McNemar)"):
        table.add_column(column, justify="right")
    for row in rows:
        if not row.native:
            change = row.change
            differs = ("–", "–") if change is None else (f"{change.change:+.4f}", f"{change.p_value:.3g}")
            table.add_row(_resolution(row), *_agreement_cells(row.agreement), *differs)
    return table


def robustness_table(found: Robustness) -> Table:
    """The metrics at each severity of each corruption, for the terminal.

    Args:
        found: The report's ``robustness``.

    Returns:
        The table.
    """
    clean = found.clean.metrics
    # With one metric less than is drawn, and no lines between the columns, it fits into 80 characters.
    metrics = [name for name in DRAWN if name in clean and name != "mean_per_class_recall"]
    table = Table(title=f"Corrupted images, at {found.resolution} pixels", box=SIMPLE_HEAD)
    table.add_column("corruption", no_wrap=True, min_width=9)
    for column in ("level", *(_SHORT[name] for name in metrics), "cosine", "same class", "same caption"):
        table.add_column(column, justify="right")
    table.add_row("untouched", "", *(f"{clean[name]:.4f}" for name in metrics), "", "", "")
    for kind, curve in found.corruptions.items():
        table.add_section()
        for index, level in enumerate(curve.levels):
            table.add_row(
                "" if index else escape(kind),
                f"{level.level:g}",
                *(f"{level.metrics[name]:.4f}" for name in metrics),
                *_agreement_cells(level.agreement),
            )
    return table


def _resolution(row: AtResolution) -> str:
    return f"{row.resolution}{' (own)' if row.native else ''}"


def _agreement_cells(agreement: Agreement) -> Iterator[str]:
    for name in AGREEMENTS:
        value = getattr(agreement, name)
        yield "–" if value is None else f"{value:.4f}"
