"""The similarity matrix as a heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from domainclip.reports.plots.style import ORANGE, evenly_spaced, heading, names_of, save, short_label, shown_of

_MOST_SHOWN = 200  # rows and columns; more cells than this are smaller than a few dots
_MOST_LABELS = 60  # along one side
_MOST_VALUES = 12  # rows and columns up to which a cell can hold a readable number
_FEW = 6  # columns up to which their labels can lie


def draw_similarity_matrix(
    similarity: np.ndarray,
    image_labels: Sequence[object] | None,
    text_labels: Sequence[object] | None,
    targets: np.ndarray | None,
    title: str,
    path: Path,
) -> Path:
    """Images are rows, texts columns; pairs that belong together are framed where cells are large enough.

    Args:
        similarity: ``[images, texts]``.
        image_labels: Names of the rows; numbers where there are none.
        text_labels: Names of the columns.
        targets: Which pairs belong together.
        title: The heading.
        path: The PNG to write.

    Returns:
        ``path``.
    """
    n_images, n_texts = similarity.shape
    rows, columns = evenly_spaced(n_images, _MOST_SHOWN), evenly_spaced(n_texts, _MOST_SHOWN)
    shown = similarity[np.ix_(rows, columns)]
    few = len(columns) <= _FEW
    size = 1.7 if few else _cell(len(columns))  # inches; wide enough for lying labels where these are few
    tall = 0.7 if few and len(rows) <= _MOST_VALUES else _cell(len(rows))
    width, height = max(1.2, size * len(columns)), max(0.7, tall * len(rows))
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1))
    image = axis.imshow(shown, cmap="Blues", aspect="auto", interpolation="nearest")
    _label_rows(axis, [names_of(image_labels, n_images)[row] for row in rows], tall)
    _label_columns(axis, [names_of(text_labels, n_texts)[column] for column in columns], size, few)
    axis.tick_params(length=0)
    if len(rows) <= _MOST_VALUES and len(columns) <= _MOST_VALUES:
        largest = np.abs(shown).max()
        form = ".2f" if 0.05 <= largest < 1000 else ".2g"
        middle = (shown.min() + shown.max()) / 2
        for (row, column), value in np.ndenumerate(shown):
            axis.text(
                column,
                row,
                f"{value:{form}}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > middle else "black",
            )
    framed = targets is not None and max(len(rows), len(columns)) <= _MOST_LABELS
    if framed:
        for row, column in np.argwhere(targets[np.ix_(rows, columns)]):  # type: ignore[index]
            axis.add_patch(
                Rectangle((column - 0.45, row - 0.45), 0.9, 0.9, fill=False, edgecolor=ORANGE, linewidth=1.6)
            )
    parts = (shown_of(len(rows), n_images, "images"), shown_of(len(columns), n_texts, "texts"))
    subset = " and ".join(part for part in parts if part)
    axis.set_title(
        heading(title, subset and f"{subset} shown, evenly spaced", "framed: belong together" if framed else ""),
        fontsize=11,
        loc="left",
    )
    axis.set_xlabel("texts", fontsize=10)
    axis.set_ylabel("images", fontsize=10)
    bar_height = min(height, 4.0)
    bar = figure.add_axes((1 + 0.15 / width, 1 - bar_height / height, 0.16 / width, bar_height / height))
    figure.colorbar(image, cax=bar).set_label("similarity", fontsize=9)
    bar.tick_params(labelsize=8)
    return save(figure, path)


def _cell(n: int) -> float:
    return max(0.045, min(0.55, 9 / n))


def _label_rows(axis: Axes, labels: list[object], cell: float) -> None:
    ticks = np.arange(0, len(labels), math.ceil(len(labels) / _MOST_LABELS))
    roomy = cell >= 0.45
    axis.set_yticks(
        ticks,
        [short_label(labels[tick], 84 if roomy else 48, 42 if roomy else None) for tick in ticks],
        fontsize=8 if roomy else _font(len(labels), cell),
    )


def _label_columns(axis: Axes, labels: list[object], cell: float, few: bool) -> None:
    ticks = np.arange(0, len(labels), math.ceil(len(labels) / _MOST_LABELS))
    axis.set_xticks(
        ticks,
        [short_label(labels[tick], 84 if few else 48, 21 if few else None) for tick in ticks],
        fontsize=8 if few else _font(len(labels), cell),
        rotation=0 if few else 90,
    )


def _font(n: int, cell: float) -> float:
    """Points: a line of text is at most as high as the distance between two labels."""
    return max(5.0, min(8.0, cell * max(1.0, n / _MOST_LABELS) * 72 * 0.75))
