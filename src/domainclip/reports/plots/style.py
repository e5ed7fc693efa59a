"""What all plots share: colours, labels of any length and script, thinning, and writing the file.

Figures are made as objects, without pyplot, whose global state leaks figures and is not safe in threads. A figure
is as large as what is drawn in it; labels lie outside it and the saved image grows by them, so that long labels
never take room from the data. The colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
import logging
import math
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from domainclip.files import write_bytes

log = logging.getLogger(__name__)

BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#000000"
SERIES = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", (0, (6, 2)), "-.")  # so that curves on top of each other show

_DPI = 120
# Fonts for scripts that matplotlib's own font lacks, as macOS, Windows and Linux have them; taken where installed.
_OTHER_SCRIPTS = (
    "Hiragino Sans",
    "PingFang SC",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Nirmala UI",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans Hebrew",
    "Noto Sans Arabic",
)


def font_families() -> list[str]:
    """Choose the fonts to draw with.

    Returns:
        Matplotlib's own font, then installed ones that have the glyphs it lacks.
    """
    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in _OTHER_SCRIPTS if name in installed)]


def short_label(label: object, limit: int, width: int | None = None) -> str:
    """A label that fits. The middle goes, because captions of one domain tend to begin alike and differ at the end.

    Args:
        label: Anything.
        limit: Characters at most; half as many where they are wide.
        width: Characters of a line at most.

    Returns:
        Its text.
    """
    text = "".join(sign for sign in " ".join(str(label).split()) if sign.isprintable())
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in text)
    if wide * 2 > len(text):  # glyphs of double width
        limit, width = max(4, limit // 2), width and max(2, width // 2)
    if len(text) > limit:
        head = math.ceil((limit - 1) * 0.6)
        text = text[:head].rstrip() + "…" + text[len(text) - (limit - 1 - head) :].lstrip()
    return "\n".join(textwrap.wrap(text, width)) if width else text


def heading(*lines: str, width: int = 84) -> str:
    """Lines of a title, each wrapped.

    Args:
        *lines: The lines; empty ones are left out.
        width: Characters of a line at most.

    Returns:
        The title.
    """
    return "\n".join(part for line in lines if line for part in textwrap.wrap(line, width))


def evenly_spaced(n: int, most: int) -> np.ndarray:
    """Some of many items, evenly spaced from the first to the last.

    Args:
        n: How many there are.
        most: How many are wanted at most.

    Returns:
        Their indices.
    """
    return np.arange(n) if n <= most else np.unique(np.linspace(0, n - 1, most).round().astype(int))


def shown_of(shown: int, total: int, what: str) -> str:
    """How many of how many are shown.

    Args:
        shown: How many are.
        total: How many there are.
        what: Their name.

    Returns:
        "200 of 2,000 images", nothing where all are shown.
    """
    return "" if shown == total else f"{shown:,} of {total:,} {what}"


def names_of(labels: Sequence[object] | None, n: int) -> list[object]:
    """Labels, or numbers in their place.

    Args:
        labels: The labels, None where there are none.
        n: How many.

    Returns:
        A name for each.
    """
    return list(range(n)) if labels is None else list(labels)


def tidy(axes: Iterable[Axes]) -> None:
    """A light grid behind the data, and no frame where nothing is read off.

    Args:
        axes: Axes of matplotlib.
    """
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#E5E5E5", linewidth=0.6)
        axis.set_axisbelow(True)


@contextmanager
def one_plot(path: Path, width: float, height: float) -> Iterator[Axes]:
    """Tidy axes to draw in; the file is written in the end.

    Args:
        path: The PNG to write.
        width: In inches.
        height: In inches.

    Yields:
        The axes.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    tidy([axis])
    yield axis
    save(figure, path)


def curve_style(index: int) -> dict[str, Any]:
    """Colour, line and marker of one of several curves: no two of the first 21 have all three alike, and no two of the
    first seven any colour or marker.

    Args:
        index: Of the curve.

    Returns:
        Keywords of ``Axes.plot``.
    """
    return {
        "color": SERIES[index % len(SERIES)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index % len(LINES)],
        "linewidth": 1.6,
        "markersize": 5,
    }


def legend_beside(axis: Axes, **options: Any) -> None:
    """The legend to the right of the data, where it hides none of them.

    Args:
        axis: Axes of matplotlib.
        **options: More of ``Axes.legend``.
    """
    axis.legend(**{"frameon": False, "fontsize": 8, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)} | options)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG whole or not at all.

    Args:
        figure: What to draw.
        path: The file.

    Returns:
        ``path``.
    """
    FigureCanvasAgg(figure)
    families = font_families()
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
        text.set_parse_math(False)  # a dollar sign in a caption starts no formula
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.15)
    glyphs = [each for each in found if "missing from font" in str(each.message)]  # one for each letter
    if glyphs:
        log.warning(
            "%s shows boxes in place of letters that no installed font has: install one that has them, such as Noto "
            "Sans CJK",
            path.name,
        )
    for each in found:
        if each not in glyphs:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    write_bytes(path, buffer.getvalue())
    return path
