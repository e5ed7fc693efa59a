"""Images and texts as points in a plane."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from domainclip.errors import ConfigurationError, ShapeError
from domainclip.reports.plots.style import (
    BLUE,
    GREY,
    ORANGE,
    SERIES,
    evenly_spaced,
    heading,
    save,
    short_label,
    shown_of,
    tidy,
)

PROJECTIONS = ("pca", "tsne")

_MOST_POINTS = 1000  # of each modality; more hide one another
_MOST_LINES = 60  # pairs up to which a line joins an image and its text
_COLOURS = SERIES[:-1]


def draw_embedding_map(
    images: np.ndarray,
    texts: np.ndarray,
    image_labels: Sequence[object] | None,
    text_labels: Sequence[object] | None,
    paired: bool,
    method: str,
    seed: int,
    gap: float,
    title: str,
    path: Path,
) -> Path:
    """Images and texts in a plane. Shape tells the modality; colour the label, where there is one.

    Args:
        images: Unit-length rows ``[images, dim]``.
        texts: Unit-length rows ``[texts, dim]``.
        image_labels: A label for each image.
        text_labels: A label for each text.
        paired: Whether row i of both belongs together.
        method: ``pca`` or ``tsne``.
        seed: For t-SNE.
        gap: The modality gap, for the heading.
        title: The heading.
        path: The PNG to write.

    Returns:
        ``path``.
    """
    image_rows, text_rows = evenly_spaced(len(images), _MOST_POINTS), evenly_spaced(len(texts), _MOST_POINTS)
    points, axis_names = project(np.concatenate([images[image_rows], texts[text_rows]]), method, seed)
    sides = points[: len(image_rows)], points[len(image_rows) :]
    figure = Figure(figsize=(6.5, 5.5))
    axis = figure.add_axes((0, 0, 1, 1))
    if paired and len(image_rows) <= _MOST_LINES:
        axis.add_collection(LineCollection(list(np.stack(sides, axis=1)), colors="#BBBBBB", linewidths=0.7, zorder=1))
    labels = _labels(image_labels, image_rows), _labels(text_labels, text_rows)
    palette = _palette([label for side in labels for label in side])
    many = len(points) > 200
    for places, side, marker, plain in ((sides[0], labels[0], "o", BLUE), (sides[1], labels[1], "^", ORANGE)):
        colours = [palette.get(label, GREY) for label in side] if side else plain
        axis.scatter(
            places[:, 0],
            places[:, 1],
            c=colours,
            marker=marker,
            s=16 if many else 42,
            alpha=0.75,
            edgecolors="white",
            linewidths=0.3,
            zorder=2,
        )
    axis.set_xlabel(axis_names[0])
    axis.set_ylabel(axis_names[1])
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.yaxis.set_major_locator(MaxNLocator(6))
    axis.margins(0.06)
    if method == "pca":
        axis.set_aspect("equal", adjustable="datalim")  # distances mean the same along both
    _legend(axis, palette, [label for side in labels for label in side], (len(image_rows), len(text_rows)))
    parts = (
        shown_of(len(image_rows), len(images), "images"),
        shown_of(len(text_rows), len(texts), "texts"),
    )
    subset = " and ".join(part for part in parts if part)
    axis.set_title(
        heading(
            title,
            f"modality gap {gap:.3f} (distance of the two means at unit length, 0…2)",
            subset and f"{subset} shown, evenly spaced",
            width=72,
        ),
        fontsize=11,
        loc="left",
    )
    tidy([axis])
    return save(figure, path)


def project(rows: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    """Two numbers for each row, and what the two axes are.

    Args:
        rows: ``[rows, dim]``.
        method: ``pca``: the directions of largest variance, exact and without chance. ``tsne``: van der Maaten and
            Hinton 2008; neighbourhoods mean something, distances between groups do not.
        seed: For t-SNE.

    Returns:
        ``[rows, 2]``, and what the axes are called.

    Raises:
        ConfigurationError: The method has another name.
        ShapeError: t-SNE of fewer than 4 rows.
    """
    if method == "pca":
        from sklearn.decomposition import PCA

        wanted = min(2, *rows.shape)
        model = PCA(wanted, svd_solver="full")
        centred = rows - rows.mean(axis=0)
        if not np.abs(centred).max() > 1e-12:  # a collapsed model: one point, and no variance to explain
            return np.zeros((len(rows), 2)), ("first component (no variance)", "second component (no variance)")
        found = np.zeros((len(rows), 2))
        found[:, :wanted] = model.fit_transform(centred)
        fractions = [*model.explained_variance_ratio_, 0.0][:2]
        return found, (f"first component ({fractions[0]:.0%} of variance)", f"second component ({fractions[1]:.0%})")
    if method == "tsne":
        from sklearn.manifold import TSNE

        if len(rows) < 4:
            raise ShapeError(f"t-SNE needs at least 4 embeddings, got {len(rows)}: use method='pca'")
        perplexity = min(30.0, (len(rows) - 1) / 3)
        start = "pca" if min(rows.shape) >= 2 else "random"
        model = TSNE(2, perplexity=perplexity, init=start, random_state=seed)
        return model.fit_transform(rows.astype(np.float32)), (f"t-SNE 1 (perplexity {perplexity:.0f})", "t-SNE 2")
    raise ConfigurationError(f"Invalid method {method!r}: choose {' or '.join(PROJECTIONS)}")


def _labels(labels: Sequence[object] | None, rows: np.ndarray) -> list[object]:
    return [] if labels is None else [labels[row] for row in rows]


def _palette(labels: list[object]) -> dict[object, str]:
    """Colours of the most frequent labels; the rest stays grey."""
    frequent = [label for label, _ in Counter(labels).most_common(len(_COLOURS))]
    return dict(zip(frequent, _COLOURS, strict=False))


def _legend(axis: Axes, palette: dict[object, str], labels: list[object], counts: tuple[int, int]) -> None:
    plain = not palette
    handles = [
        Line2D([], [], marker=marker, linestyle="", color=colour if plain else "#444444", label=f"{name} ({count:,})")
        for name, marker, colour, count in (("images", "o", BLUE, counts[0]), ("texts", "^", ORANGE, counts[1]))
    ]
    handles += [
        Line2D([], [], marker="s", linestyle="", color=colour, label=short_label(label, 84, 42))
        for label, colour in palette.items()
    ]
    others = len(set(labels)) - len(palette)
    if others:
        handles.append(Line2D([], [], marker="s", linestyle="", color=GREY, label=f"{others:,} other labels"))
    axis.legend(handles=handles, frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.01, 1.01))
