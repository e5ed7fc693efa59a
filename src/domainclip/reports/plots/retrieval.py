"""A sheet of queries and their answers, with the images themselves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from domainclip.data.images.reader import ImageLike, rgb_of
from domainclip.reports.plots.style import GREEN, GREY, ORANGE, evenly_spaced, heading, save, short_label, shown_of
from domainclip.retrieval import RetrievalHit

_MOST_TEXT_QUERIES, _MOST_IMAGE_QUERIES, _MOST_ANSWERS = 12, 6, 10
_GAP = 0.15  # inches, like all lengths here
_QUERY = 2.1  # width of the query's cell
_TILE, _CAPTION = 1.6, 0.26  # size of an image, height of the line above it
_LINE, _TEXT_WIDTH = 0.42, 5.4  # one text among the answers: room for two lines
_DOTS = 240  # longer side of an image in the sheet
_CHARACTER = 0.066  # width of a character at 9 points; wide ones take more, so lines are cut at their cell


def draw_retrieval_results(
    queries: Sequence[str | ImageLike],
    results: Sequence[Sequence[RetrievalHit]],
    relevant: Sequence[Collection[int]] | None,
    title: str,
    path: Path,
) -> Path:
    """One row a query, the best answer first. Hits and misses differ by frame, line style and sign.

    Args:
        queries: Texts or images.
        results: Answers to each.
        relevant: Indices of the right candidates of each query, None where nobody knows.
        title: The heading.
        path: The PNG to write.

    Returns:
        ``path``.

    Raises:
        ImageError: An image cannot be read.
    """
    longest = max(len(hits) for hits in results)
    width_in_answers = min(longest, _MOST_ANSWERS)
    answers_are_images = isinstance(queries[0], str)
    rows = evenly_spaced(len(queries), _MOST_TEXT_QUERIES if answers_are_images else _MOST_IMAGE_QUERIES)
    if answers_are_images:
        row_height = _CAPTION + _TILE
        width = _QUERY + _GAP + width_in_answers * (_TILE + _GAP)
    else:
        row_height = max(_CAPTION + _TILE, width_in_answers * (_LINE + 0.08))
        width = _QUERY + _GAP + _TEXT_WIDTH + _GAP
    step = row_height + 2 * _GAP
    height = len(rows) * step
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    for index, row in enumerate(rows):
        top = index * step + _GAP
        if index:
            axis.plot([0, width], [top - _GAP, top - _GAP], color="#DDDDDD", linewidth=0.8)
        _draw_query(axis, queries[row], top, row_height)
        for rank, hit in enumerate(results[row][:_MOST_ANSWERS]):
            verdict = None if relevant is None else hit.index in relevant[row]
            if answers_are_images:
                left = _QUERY + _GAP + rank * (_TILE + _GAP)
                _draw_tile(axis, hit, rank, verdict, left, top)
            else:
                _draw_line(axis, hit, rank, verdict, _QUERY + _GAP, top + rank * (_LINE + 0.08))
    # imshow sets limits and aspect of its own: the last word is the sheet's.
    axis.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    parts = (
        shown_of(len(rows), len(queries), "queries"),
        f"best {width_in_answers} of {longest:,} answers" if longest > width_in_answers else "",
    )
    subset = ", ".join(part for part in parts if part)
    key = "" if relevant is None else "✓ solid frame: belongs to the query;  ✗ dashed frame: does not"
    axis.set_title(heading(title, subset, key, width=max(40, int(width * 11))), fontsize=11, loc="left")
    return save(figure, path)


def _draw_query(axis: Axes, query: str | ImageLike, top: float, row_height: float) -> None:
    axis.text(0.02, top + 0.02, "query", fontsize=8, color="#555555", va="top")
    if isinstance(query, str):
        lines = short_label(query, 180, int((_QUERY - 0.1) / _CHARACTER))
        _cut(axis.text(0.02, top + _CAPTION, lines, fontsize=9, va="top"), axis, 0, top, _QUERY, row_height)
    else:
        _draw_image(axis, query, 0.0, top + _CAPTION)


def _draw_tile(axis: Axes, hit: RetrievalHit, rank: int, verdict: bool | None, left: float, top: float) -> None:
    colour, style, sign = _marks(verdict)
    axis.text(left, top + 0.02, f"{rank + 1}.  {hit.score:.3f}  {sign}", fontsize=9, color=colour or "black", va="top")
    _draw_image(axis, hit.item, left, top + _CAPTION)
    _draw_frame(axis, left, top + _CAPTION, _TILE, _TILE, colour, style)


def _draw_line(axis: Axes, hit: RetrievalHit, rank: int, verdict: bool | None, left: float, top: float) -> None:
    colour, style, sign = _marks(verdict)
    middle = top + _LINE / 2
    axis.text(
        left + 0.08, middle, f"{rank + 1}.  {hit.score:.3f}  {sign}", fontsize=9, color=colour or "black", va="center"
    )
    start = left + 1.15
    width = int((left + _TEXT_WIDTH - start) / _CHARACTER)
    # Words are not cut, so lines end short of the width: leave out more of the middle until two lines hold the rest.
    labels = (short_label(hit.item, limit, width) for limit in range(2 * width, width // 2, -4))
    lines = next((label for label in labels if label.count("\n") < 2), short_label(hit.item, width // 2, width))
    text = axis.text(start, middle, lines, fontsize=9, va="center", linespacing=1.05)
    _cut(text, axis, left, top, _TEXT_WIDTH - 0.05, _LINE)
    _draw_frame(axis, left, top, _TEXT_WIDTH, _LINE, colour, style)


def _marks(verdict: bool | None) -> tuple[str, str, str]:
    if verdict is None:
        return "", "-", ""
    return (GREEN, "-", "✓") if verdict else (ORANGE, "--", "✗")


def _draw_frame(axis: Axes, left: float, top: float, width: float, height: float, colour: str, style: str) -> None:
    axis.add_patch(
        Rectangle(
            (left, top),
            width,
            height,
            fill=False,
            edgecolor=colour or GREY,
            linestyle=style,
            linewidth=2.0 if colour else 0.8,
        )
    )


def _draw_image(axis: Axes, image: ImageLike, left: float, top: float) -> None:
    pixels = _thumbnail(image)
    rows, columns = pixels.shape[:2]
    scale = (_TILE - 0.1) / max(rows, columns)
    width, height = columns * scale, rows * scale
    left, top = left + (_TILE - width) / 2, top + (_TILE - height) / 2
    axis.imshow(pixels, extent=(left, left + width, top + height, top), interpolation="antialiased")


def _thumbnail(image: ImageLike) -> np.ndarray:
    opened = Image.fromarray(rgb_of(image, at_least=_DOTS))
    opened.thumbnail((_DOTS, _DOTS))
    return np.asarray(opened)


def _cut(text: Any, axis: Axes, left: float, top: float, width: float, height: float) -> None:
    """Wide letters may make a line longer than its cell: cut it there rather than let it cover its neighbour."""
    text.set_clip_on(True)
    text.set_clip_path(Rectangle((left, top), width, height, transform=axis.transData))
