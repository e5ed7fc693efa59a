"""The images of a report. Each function writes one PNG, whole or not at all.

Figures are made as objects, without pyplot, whose global state leaks figures and is not safe in threads. The
colours are Okabe and Ito's, which remain distinct to colour-blind readers; the matrix uses one hue from light
to dark, which also survives grey printing.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from domainclip.errors import ShapeError
from domainclip.metrics.metric import METRICS, OWN_SECTION
from domainclip.reports.plots.style import (
    BLACK,
    BLUE,
    GREY,
    curve_style,
    legend_beside,
    one_plot,
    save,
    short_label,
    tidy,
)
from domainclip.words import counted

BEFORE, AFTER = GREY, BLUE

_MOST_VALUE_LABELS = 16  # classes up to which every cell of a matrix can hold a readable number
_MOST_CLASS_LABELS = 120  # classes up to which every row can be named
_MAIN = (
    *("acc1", "mean_per_class_recall", "macro_f1", "mAP", "mean_auroc"),
    *("i2t_R@1", "t2i_R@1", "i2t_MRR", "t2i_MRR", "reference_mean"),
)
"""Figures that are drawn: R@5, R@10 and means of two say little more, and would crowd a plot. So are a plugin's own."""
_VALIDATION_PREFIXES = ("validation/", "validation_", "val/", "val_", "eval/", "eval_")


def plot_loss(rows: Sequence[Mapping[str, Any]], path: Path, kept_step: int | None = None) -> bool:
    """Training and validation loss over the steps, the step that was kept, and the learning rate below.

    Args:
        rows: Those of ``metrics.jsonl``: ``step`` with ``loss`` (or ``train_loss``), ``val_loss`` and ``lr`` (or
            ``learning_rate``) where they were measured; keys that begin with ``lr`` are one curve each.
        path: The PNG to write.
        kept_step: The step whose weights were kept, None where nobody chose.

    Returns:
        Whether any row has a loss.
    """
    curves = {
        "training": _series(rows, ("loss", "train_loss")),
        "validation": _series(rows, tuple(f"{prefix}loss" for prefix in _VALIDATION_PREFIXES)),
    }
    if not any(len(steps) for steps, _ in curves.values()):
        return False
    rates = {key: _series(rows, (key,)) for key in dict.fromkeys(key for row in rows for key in row) if _is_rate(key)}
    rates = {key: curve for key, curve in rates.items() if len(curve[0])}
    figure = Figure(figsize=(7.5, 5.2 if rates else 3.8), layout="constrained")
    axes = figure.subplots(2 if rates else 1, 1, sharex=True, squeeze=False, height_ratios=[2.6, 1] if rates else None)[
        :, 0
    ]
    for index, (name, (steps, values)) in enumerate(curves.items()):
        if len(steps):
            points = index == 1 or len(steps) < 3  # of training there are too many to mark
            style = curve_style(index) | ({} if points else {"marker": None})
            axes[0].plot(steps, values, label=f"{name} ({values[-1]:.3g})", **style)
    for number, axis in enumerate(axes):
        _mark_kept(axis, kept_step, named=not number)
    axes[0].set(title="Loss during training", ylabel="loss (nats)")
    legend_beside(axes[0], title="last value in brackets", title_fontsize=8)
    for index, (name, (steps, values)) in enumerate(rates.items()):
        style = curve_style(index) | ({"marker": None} if len(steps) > 2 else {})
        axes[1].plot(steps, values, label=name, **style)
    if rates:
        axes[1].set(ylabel="learning rate")
        axes[1].set_ylim(bottom=0)
        axes[1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    if len(rates) > 1:
        legend_beside(axes[1])
    tidy(axes)
    _whole_steps(axes[-1])
    save(figure, path)
    return True


def plot_metrics(rows: Sequence[Mapping[str, Any]], path: Path, kept_step: int | None = None) -> bool:
    """Validation metrics (those in 0…1, as acc1 and R@1) over the steps, and the step that was kept.

    Args:
        rows: Those of ``metrics.jsonl``.
        path: The PNG to write.
        kept_step: The step whose weights were kept, None where nobody chose.

    Returns:
        Whether any row has one.
    """
    keys = dict.fromkeys(key for row in rows for key in row if METRICS[_without_prefix(key)].is_score)
    found = {_without_prefix(key): _series(rows, (key,)) for key in keys if _drawn(_without_prefix(key))}
    named: dict[tuple[tuple[float, ...], ...], list[str]] = {}
    for name, (steps, values) in found.items():  # accuracy and recall of classes of one size are one curve
        if steps:
            named.setdefault((tuple(steps), tuple(round(value, 6) for value in values)), []).append(name)
    if not named:
        return False
    with one_plot(path, 7.5, max(4.2, 0.5 + 0.36 * len(found))) as axis:
        for index, ((places, levels), names) in enumerate(named.items()):
            label = " = ".join(METRICS[name].title for name in names) + f" ({levels[-1]:.1%})"
            axis.plot(places, levels, label=textwrap.fill(label, 44), **curve_style(index))
        _mark_kept(axis, kept_step)
        axis.set(title="Validation metrics during training", ylabel="fraction (more is better)")
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set_ylim(0, 1.02)
        legend_beside(axis, title="last value in brackets", title_fontsize=8)
        _whole_steps(axis)
    return True


def _mark_kept(axis: Axes, step: int | None, *, named: bool = True) -> None:
    if step is not None:
        label = f"kept: step {step:,}" if named else None
        axis.axvline(step, color=BLACK, linewidth=1.1, linestyle=(0, (1, 2)), label=label, zorder=1)


def _whole_steps(axis: Axes) -> None:
    axis.set_xlabel("optimizer steps")
    low, high = axis.get_xlim()
    if high - low < 2:  # a single step, or two: ticks between them would be no steps
        axis.set_xlim(math.floor(low) - 0.5, math.ceil(high) + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_confusion(
    confusion: Sequence[Sequence[int]] | np.ndarray,
    labels: Sequence[str],
    path: Path,
    title: str = "Confusion matrix",
) -> None:
    """Fractions of each true class (rows) by predicted class (columns), each row summing to 100 %.

    With few classes every cell carries its fraction and count; with many, cells are coloured only, and beyond
    120 every few names are left out.

    Args:
        confusion: Images by true class (rows) and predicted class (columns).
        labels: The classes.
        path: The PNG to write.
        title: The heading.

    Raises:
        ShapeError: Matrix and labels do not fit.
    """
    counts = np.asarray(confusion)
    n = len(labels)
    if n == 0 or counts.shape != (n, n):
        raise ShapeError(f"A confusion matrix of {n} labels has shape ({n}, {n}), got {counts.shape}")
    totals = counts.sum(axis=1, keepdims=True)
    fractions = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    with_values, few = n <= _MOST_VALUE_LABELS, n <= 5
    cell = 1.15 if few else 0.62 if with_values else max(0.15, min(0.3, 16 / n))  # inches
    font = 9.0 if with_values else max(5.0, min(8.0, cell * 72 * 0.6))
    side = min(24.0, n * cell)
    figure = Figure(figsize=(side + 3.0, side + 3.0), layout="constrained")
    axis = figure.subplots()
    # The square root brings out confusions of a few per cent, the reason for looking at the matrix.
    image = axis.imshow(np.sqrt(fractions), cmap="Blues", vmin=0, vmax=1, aspect="equal")
    ticks = np.arange(0, n, math.ceil(n / _MOST_CLASS_LABELS))
    names = [short_label(label, 34, 17 if few else None) for label in labels]
    axis.set_xticks(ticks, [names[tick] for tick in ticks], rotation=0 if few else 90, fontsize=font)
    axis.set_yticks(ticks, [f"{names[tick]} ({int(totals[tick, 0])})" for tick in ticks], fontsize=font)
    heading = max(11.0, min(16.0, side))
    axis.set_xlabel("predicted class", fontsize=heading - 1)
    axis.set_ylabel("true class (images)", fontsize=heading - 1)
    right = int(counts.diagonal().sum())
    axis.set_title(f"{title}\n{right} of {counted(int(counts.sum()), 'image')} right", fontsize=heading)
    axis.tick_params(length=0)
    if n <= _MOST_CLASS_LABELS:
        axis.set_xticks(np.arange(n + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(n + 1) - 0.5, minor=True)
        axis.grid(which="minor", color="#DDDDDD", linewidth=0.4)
        axis.tick_params(which="minor", length=0)
    if with_values:
        for row, column in zip(*np.nonzero(counts), strict=True):
            axis.text(
                column,
                row,
                f"{fractions[row, column]:.0%}\n{counts[row, column]}",
                ha="center",
                va="center",
                fontsize=9 if few else 7.5,
                color="white" if fractions[row, column] > 0.45 else "black",
            )
    else:
        scale = [0.0, 0.01, 0.05, 0.2, 0.5, 1.0]
        bar = figure.colorbar(image, ax=axis, ticks=np.sqrt(scale), shrink=min(1.0, 5 / side), pad=0.02)
        bar.ax.set_yticklabels([f"{fraction:.0%}" for fraction in scale], fontsize=heading - 3)
        bar.set_label("fraction of the true class", fontsize=heading - 3)
    save(figure, path)


def plot_before_after(before: Mapping[str, Any], after: Mapping[str, Any], path: Path) -> bool:
    """Two bars for each of the main figures that both have.

    Ranks are left to the table: they run the other way and on another scale.

    Args:
        before: Figures of the starting model.
        after: Those of the trained one.
        path: The PNG to write.

    Returns:
        Whether there is any.
    """
    names = [name for name in after if _drawn(name) and _finite(after[name]) and _finite(before.get(name))]
    if not names:
        return False
    places = np.arange(len(names))
    with one_plot(path, 7.5, 1.3 + 0.55 * len(names)) as axis:
        for values, offset, colour, label in ((before, -0.19, BEFORE, "before"), (after, 0.19, AFTER, "after")):
            widths = [float(values[name]) for name in names]
            bars = axis.barh(places + offset, widths, height=0.36, color=colour, label=label)
            axis.bar_label(bars, labels=[f"{width:.1%}" for width in widths], padding=3, fontsize=8)
        axis.set_yticks(places, [textwrap.fill(METRICS[name].title, 34) for name in names], fontsize=9)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.1)
        axis.set_xticks(np.arange(0, 1.01, 0.2))
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set(title="Before and after fine-tuning", xlabel="fraction (more is better)")
        legend_beside(axis, fontsize=10)
        axis.grid(axis="y", visible=False)
    return True


def _drawn(name: str) -> bool:
    facts = METRICS[name]
    return facts.is_score and (name in _MAIN or facts.section == OWN_SECTION)


def _is_rate(key: str) -> bool:
    return key in ("lr", "learning_rate") or key.startswith(("lr_", "lr/"))


def _without_prefix(key: str) -> str:
    for prefix in _VALIDATION_PREFIXES:
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


def _finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(float(value))


def _series(rows: Sequence[Mapping[str, Any]], keys: tuple[str, ...]) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have one of ``keys`` as a finite number."""
    points = [
        (float(row["step"]), float(row[key]))
        for row in rows
        for key in keys
        if _finite(row.get("step")) and _finite(row.get(key))
    ]
    return [step for step, _ in points], [value for _, value in points]
