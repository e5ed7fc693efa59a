"""A sheet that shows, for a few images, what becomes of them on their way to the model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from domainclip.data.images.reader import read_image
from domainclip.errors import ImageError, MissingExtraError

CELL = 200
"""Resolution of an image on the sheet, in pixels."""
GRID_COLUMNS = 5
_GAP, _LINE, _TITLE = 10, 19, 24
_INK, _FAINT, _PAPER, _MAT, _GRID = "#1a1a1a", "#6b6b6b", "white", "#ececec", "#e8590c"


@dataclass
class SheetRow:
    """``images``: uint8 ``[h, w, 3]``, one a column. ``caption``, ``treated`` (what becomes of it, if
    anything) and ``facts`` stand beneath, cut to the width.
    ``tiles``: top, left, height and width of tiles, in pixels of the second image, to be outlined there."""

    images: Sequence[np.ndarray]
    caption: str
    facts: str
    treated: str = ""
    tiles: Sequence[tuple[int, int, int, int]] = ()


def contact_sheet(columns: Sequence[str], rows: Sequence[SheetRow], title: str, notes: Sequence[str] = ()) -> bytes:
    """Draw the sheet.

    Args:
        columns: Headings, one for each image of a row.
        rows: From top to bottom.
        title: Cut to the sheet's width.
        notes: Paragraphs under the title.

    Returns:
        A PNG file.
    """
    width = _GAP + len(columns) * (CELL + _GAP)
    font, small, bold = _font(13), _font(12), _font(15, "-Bold")
    wrapped = [line for note in notes for line in _wrapped(note, small, width - 2 * _GAP)]
    top = _GAP + _TITLE + len(wrapped) * _LINE + _LINE + _GAP
    lines = 3 if any(row.treated for row in rows) else 2
    height = CELL + lines * _LINE + 2 * _GAP
    sheet = Image.new("RGB", (width, top + len(rows) * height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), _cut(title, bold, width - 2 * _GAP), fill=_INK, font=bold)
    for index, line in enumerate(wrapped):
        draw.text((_GAP, _GAP + _TITLE + index * _LINE), line, fill=_FAINT, font=small)
    for column, name in enumerate(columns):
        left = _GAP + column * (CELL + _GAP)
        draw.text((left, top - _LINE - 4), _cut(name, font, CELL), fill=_INK, font=font)
    for index, row in enumerate(rows):
        y = top + index * height
        for column, image in enumerate(row.images):
            x = _GAP + column * (CELL + _GAP)
            draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=_MAT)
            tiles = row.tiles if column == 1 else ()
            _place(sheet, draw, image, x, y, tiles)
        texts = [(row.caption, font, _INK), *([(f"→ {row.treated}", font, _INK)] if row.treated else [])]
        for position, (text, face, ink) in enumerate([*texts, (row.facts, small, _FAINT)]):
            draw.text((_GAP, y + CELL + 3 + position * _LINE), _cut(text, face, width - 2 * _GAP), fill=ink, font=face)
    return _png(sheet)


@dataclass(frozen=True)
class GridCell:
    """An image with two lines beneath; None where it cannot be shown."""

    image: np.ndarray | None
    line: str
    faint: str = ""

    @classmethod
    def of(cls, path: str, line: str, max_pixels: int) -> GridCell:
        """The cell of a file.

        Args:
            path: An image.
            line: Stands beneath, above the file's name.
            max_pixels: Larger images are not shown.

        Returns:
            The cell, empty where the file cannot be read.
        """
        image = None
        with suppress(ImageError, MissingExtraError):  # the line says so
            image = read_image(Path(path), max_pixels, at_least=CELL)
        return cls(image, line, Path(path).name)


def image_grid(cells: Sequence[GridCell], title: str) -> bytes:
    """Draw images in rows, as search results are shown.

    Args:
        cells: From left to right and from top to bottom.
        title: Cut to the sheet's width.

    Returns:
        A PNG file.
    """
    columns = min(GRID_COLUMNS, max(2, len(cells)))
    font, small, bold = _font(13), _font(12), _font(15, "-Bold")
    width, top, height = _GAP + columns * (CELL + _GAP), _GAP + _TITLE + _GAP, CELL + 2 * _LINE + 2 * _GAP
    sheet = Image.new("RGB", (width, top + -(-len(cells) // columns) * height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), _cut(title, bold, width - 2 * _GAP), fill=_INK, font=bold)
    for index, cell in enumerate(cells):
        x, y = _GAP + index % columns * (CELL + _GAP), top + index // columns * height
        draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=_MAT)
        if cell.image is not None:
            _place(sheet, draw, cell.image, x, y, ())
        draw.text((x, y + CELL + 3), _cut(cell.line, font, CELL), fill=_INK, font=font)
        draw.text((x, y + CELL + 3 + _LINE), _cut(cell.faint, small, CELL), fill=_FAINT, font=small)
    return _png(sheet)


def _png(sheet: Image.Image) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _place(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    image: np.ndarray,
    x: int,
    y: int,
    tiles: Sequence[tuple[int, int, int, int]],
) -> None:
    """Into its cell, as large as fits, in its own proportions."""
    height, width = image.shape[:2]
    factor = CELL / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    # Enlarged pixels stay squares: smoothing would show more than there is.
    kind = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST
    left, top = x + (CELL - size[0]) // 2, y + (CELL - size[1]) // 2
    sheet.paste(Image.fromarray(image).resize(size, kind), (left, top))
    for tile_top, tile_left, tile_height, tile_width in tiles:
        corner = left + tile_left * factor, top + tile_top * factor
        draw.rectangle(
            (*corner, corner[0] + tile_width * factor - 1, corner[1] + tile_height * factor - 1), outline=_GRID
        )


def _font(size: int, style: str = "") -> ImageFont.FreeTypeFont:
    import matplotlib  # it brings a font with accents, Greek and Cyrillic; Pillow's own has none of these

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{style}.ttf", size)


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text on one line, ended by "…" where it is wider than ``width`` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle].rstrip() + "…") <= width else (low, middle - 1)
    return text[:low].rstrip() + "…"


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_cut(line, font, width) for line in lines]
