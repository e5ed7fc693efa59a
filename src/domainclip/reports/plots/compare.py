"""The comparison matrix as an image."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from domainclip.evaluation.compare_matrix import BETTER, FAILED, REFERENCE, SAME, UNTESTED, WORSE, ComparedData
from domainclip.reports.comparison import SIGNS, comparison_title, interval_text
from domainclip.reports.plots.style import heading, save, short_label
from domainclip.reports.schema.comparison import ComparisonReport
from domainclip.reports.text import percent, points, title

# Light tints of Okabe and Ito's blue and vermilion: text stays readable on them, and the signs say the same.
TINTS = {
    BETTER: "#CFE6F5",
    SAME: "#EEEEEE",
    WORSE: "#FADFCE",
    REFERENCE: "#FFFFFF",
    UNTESTED: "#FFFFFF",
    FAILED: "#FFFFFF",
}
_WIDTH, _HEIGHT = 1.5, 0.72  # of a cell, inches


def plot_matrix(report: ComparisonReport, path: Path) -> Path:
    """Models down, data sets across; a cell holds the metric, its interval and the change, on the verdict's colour.

    Args:
        report: The comparison.
        path: The PNG to write.

    Returns:
        ``path``.
    """
    models = [model.name for model in report.models]
    columns = report.data
    figure = Figure(figsize=(_WIDTH * len(columns), _HEIGHT * len(models)))
    axis = figure.add_axes((0, 0, 1, 1))
    for row, model in enumerate(models):
        for index, column in enumerate(columns):
            cell = report.cell(model, column.name)
            box = Rectangle((index, row), 1, 1, facecolor=TINTS[cell.verdict], edgecolor="#888888", linewidth=0.8)
            axis.add_patch(box)
            if cell.value is None:
                box.set_hatch("////")
                backing = {"facecolor": "white", "edgecolor": "none", "pad": 2}
                axis.text(index + 0.5, row + 0.5, cell.verdict, ha="center", va="center", fontsize=8, bbox=backing)
                continue
            axis.text(
                index + 0.5, row + 0.27, percent(cell.value), ha="center", va="center", fontsize=11, weight="bold"
            )
            axis.text(index + 0.5, row + 0.55, interval_text(cell), ha="center", va="center", fontsize=8)
            below = cell.verdict if cell.change is None else f"{SIGNS[cell.verdict]} {points(cell.change)}"
            axis.text(index + 0.5, row + 0.81, below, ha="center", va="center", fontsize=8)
    axis.set(xlim=(0, len(columns)), ylim=(len(models), 0))
    names = [f"{_wrapped(column.name, 17)}\n{_below(report, column)}".rstrip() for column in columns]
    axis.set_xticks([index + 0.5 for index in range(len(columns))], names, fontsize=8.5)
    axis.set_yticks([row + 0.5 for row in range(len(models))], [_wrapped(model, 26) for model in models], fontsize=9)
    axis.tick_params(length=0, bottom=False, top=False, labelbottom=False, labeltop=True)
    for spine in axis.spines.values():
        spine.set_visible(False)
    width = max(30, int(13 * _WIDTH * len(columns)))
    axis.set_title(heading(comparison_title(report), _caption(report), width=width), fontsize=10, pad=12, loc="left")
    shown = [v for v in (BETTER, SAME, WORSE) if any(cell.verdict == v for cell in report.cells)]
    if shown:
        handles = [Patch(facecolor=TINTS[v], edgecolor="#888888", label=f"{SIGNS[v]} {v}") for v in shown]
        axis.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(0, -0.02),
            frameon=False,
            fontsize=8.5,
            ncols=len(shown) if len(columns) > 2 else 1,
        )
    return save(figure, path)


def _wrapped(name: str, width: int) -> str:
    """The name on about three lines, broken after signs that join words in names of files where it has such."""
    joint = "\N{ZERO WIDTH SPACE}"
    spaced = re.sub(r"([_/.]+)", rf"\1{joint} ", short_label(name, 3 * width))
    return "\n".join(textwrap.wrap(spaced, width)).replace(f"{joint} ", "").replace(joint, "")


def _caption(report: ComparisonReport) -> str:
    shared = report.shared_metric
    parts = [title(shared)] if shared else []
    parts.append("95 % intervals")
    if report.method.tests:
        parts.append(f"changes in points against {report.reference}")
        parts.append(f"exchange tests, {report.method.correction}-corrected")
    return "; ".join(parts)


def _below(report: ComparisonReport, column: ComparedData) -> str:
    metric = column.metric if report.shared_metric is None else ""
    return metric if metric in ("acc1", "macro_f1") else title(metric)
