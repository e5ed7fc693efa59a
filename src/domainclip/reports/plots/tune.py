"""The images of a study; each function writes one PNG. Keys are anything that has the values shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from domainclip.metrics.metric import METRICS
from domainclip.reports.plots.style import BLACK, BLUE, GREY, ORANGE, legend_beside, one_plot, save, tidy
from domainclip.reports.schema.tuning import TrialRecord

_NO_VALUE = ("diverged", "out_of_memory")


class PlottedKey(Protocol):
    """What a plot asks of a key that was searched: a range ``low``…``high``, or ``choices``."""

    @property
    def key(self) -> str: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def log(self) -> bool: ...
    @property
    def choices(self) -> Sequence[Any] | None: ...
    def label(self, value: Any) -> Any:
        """A value as the study stores it.

        Args:
            value: Of the key.

        Returns:
            A plain value.
        """
        ...


def plot_history(trials: Sequence[TrialRecord], metric: str, greater_is_better: bool, path: Path) -> bool:
    """Each trial's value in order, the best so far, and the default with its standard error.

    Args:
        trials: All trials.
        metric: The short name of their primary metric.
        greater_is_better: Its direction.
        path: The PNG to write.

    Returns:
        Whether any trial has a value.
    """
    complete = [r for r in trials if r.outcome == "complete" and r.value is not None]
    if not complete:
        return False
    pruned = [r for r in trials if r.outcome == "pruned" and r.value is not None]
    with one_plot(path, 7.5, 4.2) as axis:
        default = next((r for r in complete if r.default), None)
        if default is not None and default.value is not None:
            error = default.standard_error or 0.0
            axis.axhspan(default.value - error, default.value + error, color=GREY, alpha=0.2, linewidth=0)
            axis.axhline(default.value, color=GREY, linewidth=1.2, label="default recipe ± standard error")
        best = np.maximum if greater_is_better else np.minimum
        numbers, values = [r.number for r in complete], [float(r.value or 0.0) for r in complete]
        so_far = best.accumulate(values)
        axis.step(
            [*numbers, max(r.number for r in trials)],
            [*so_far, so_far[-1]],
            where="post",
            color=BLUE,
            linewidth=1.6,
            label="best so far",
        )
        axis.plot(numbers, values, "o", color=BLUE, markersize=5, label="complete")
        if pruned:
            axis.plot(
                [r.number for r in pruned],
                [float(r.value or 0.0) for r in pruned],
                "x",
                color=ORANGE,
                markersize=6,
                label="pruned (last validation)",
            )
        lost = [r.number for r in trials if r.outcome in _NO_VALUE]
        if lost:  # at the foot of the figure: they have no value
            axis.plot(
                lost,
                [0.02] * len(lost),
                "v",
                color=BLACK,
                markersize=6,
                transform=axis.get_xaxis_transform(),
                label="diverged or out of memory",
            )
        axis.set(title="Trials in the order they ran", xlabel="trial", ylabel=f"validation {METRICS[metric].title}")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_beside(axis)
    return True


def plot_importances(importances: Mapping[str, float], path: Path) -> bool:
    """A bar for each parameter.

    Args:
        importances: Fractions by parameter.
        path: The PNG to write; removed where there is nothing to show.

    Returns:
        Whether there is.
    """
    if not importances:
        path.unlink(missing_ok=True)
        return False
    names = sorted(importances, key=lambda name: importances[name])
    with one_plot(path, 7.5, 1.2 + 0.36 * len(names)) as axis:
        bars = axis.barh(names, [importances[name] for name in names], height=0.6, color=BLUE)
        axis.bar_label(bars, labels=[f"{importances[name]:.0%}" for name in names], padding=3, fontsize=8)
        axis.set(title="What sets the better trials apart", xlabel="fraction of importance (PED-ANOVA)")
        axis.set_xlim(0, max(importances.values()) * 1.15 or 1)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.grid(axis="y", visible=False)
    return True


def plot_slices(trials: Sequence[TrialRecord], keys: Sequence[PlottedKey], metric: str, path: Path) -> bool:
    """The value against each parameter, in a panel each.

    Args:
        trials: All trials.
        keys: The keys that were searched.
        metric: The short name of the trials' primary metric.
        path: The PNG to write.

    Returns:
        Whether there are two trials to set side by side.
    """
    shown = [r for r in trials if r.outcome in ("complete", "pruned") and r.value is not None]
    keys = [d for d in keys if sum(d.key in r.params for r in shown) > 1]
    if not keys:
        return False
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(max(4.2, 3.4 * columns), 2.9 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    axes = list(grid.ravel())
    for axis, dimension in zip(axes, keys, strict=False):
        _slice(axis, dimension, [r for r in shown if dimension.key in r.params])
    for axis in axes[len(keys) :]:
        axis.set_axis_off()
    for line in grid:
        line[0].set_ylabel(metric)
    figure.suptitle(f"Validation {METRICS[metric].title} against each parameter", fontsize=11)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    tidy(axes[: len(keys)])
    save(figure, path)
    return True


def _slice(axis: Axes, dimension: PlottedKey, shown: Sequence[TrialRecord]) -> None:
    labels = None if dimension.choices is None else [dimension.label(choice) for choice in dimension.choices]

    def place(record: TrialRecord) -> float:
        value = record.params[dimension.key]
        if labels is None:
            return float(value)
        # Trials of one choice would hide each other: spread by their number, always in the same way.
        return labels.index(value) + 0.24 * ((record.number * 0.618) % 1 - 0.5)

    kinds = (
        ("complete", "o", BLUE, [r for r in shown if r.outcome == "complete" and not r.default]),
        ("pruned (last validation)", "x", ORANGE, [r for r in shown if r.outcome == "pruned"]),
        ("default recipe", "D", BLACK, [r for r in shown if r.default and r.outcome == "complete"]),
    )
    for name, marker, colour, some in kinds:
        values = [float(r.value or 0.0) for r in some]
        axis.plot([place(r) for r in some], values, marker, color=colour, markersize=5, label=name)
    if labels is not None:
        names = [str(label) if len(str(label)) < 16 else f"{str(label)[:14]}…" for label in labels]
        axis.set_xticks(range(len(labels)), names, fontsize=8, rotation=0 if len("".join(names)) < 24 else 30)
        if len("".join(names)) >= 24:
            for tick in axis.get_xticklabels():
                tick.set_horizontalalignment("right")
        axis.set_xlim(-0.5, len(labels) - 0.5)
    elif dimension.log:
        axis.set_xscale("log")
        wide = dimension.high / dimension.low > 50  # in two decades 1, 2, 5 would run into each other
        axis.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        axis.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-") if value < 1e-2 else f"{value:g}")
        )
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlim(dimension.low / 1.1, dimension.high * 1.1)
    else:
        margin = 0.04 * (dimension.high - dimension.low)
        axis.set_xlim(dimension.low - margin, dimension.high + margin)
    axis.set_xlabel(dimension.key)
