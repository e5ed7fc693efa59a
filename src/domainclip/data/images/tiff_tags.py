"""What the tags of a TIFF page say of the numbers that tifffile gives of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from domainclip.data.images.pixel_meaning import from_inks, negative, on_white, through_palette, turned
from domainclip.errors import ImageError

_WHITE_IS_ZERO, _PALETTE, _INKS = 0, 3, 5
_COLOURS = {0: 1, 1: 1, 2: 3, _INKS: 4}
"""Samples that are colour, of the interpretations that may have further ones (TIFF 6.0, ExtraSamples)."""
_LAB = {8, 9, 10}
_PREMULTIPLIED, _ALPHA = 1, 2
_PHOTOMETRIC, _ORIENTATION, _INK_SET = 262, 274, 332


def meant_by_tags(values: np.ndarray, page: Any, stacked: bool, path: Path) -> np.ndarray:
    """``[h, w]`` or ``[h, w, c]`` as Pillow would show it, had it the depth. ``stacked``: the channels are pages of
    their own, each a measurement: no index into a palette, no ink, no transparency.

    32 unsigned bits come as int64, which has an image span its own range: nothing fills all of theirs. Raises
    ``ImageError`` for colours that are not converted.
    """
    kind = int(page.photometric) if _PHOTOMETRIC in page.tags else -1
    if kind in _LAB or (kind == _INKS and not stacked and not _four_inks(values, page)):
        raise ImageError(f"{path}: deep colours kept as {page.photometric.name} are not converted: export it as RGB")
    if kind == _PALETTE and values.ndim == 2 and page.colormap is not None:
        values = through_palette(values, page.colormap)
    elif not stacked and values.ndim == 3:
        values = _colours(values, page, kind)
    elif kind == _WHITE_IS_ZERO:
        values = negative(values, page.bitspersample)
    if values.dtype == np.uint32:
        values = values.astype(np.int64)
    tag = page.tags.get(_ORIENTATION)
    return turned(values, tag.value if tag is not None and isinstance(tag.value, int) else 1)


def _colours(values: np.ndarray, page: Any, kind: int) -> np.ndarray:
    extra = [int(sample) for sample in page.extrasamples]
    alphas = [place for place, sample in enumerate(extra) if sample in {_PREMULTIPLIED, _ALPHA}]
    transparency = None
    if alphas and _COLOURS.get(kind, 0) + len(extra) == values.shape[2]:
        place = _COLOURS.get(kind, 0) + alphas[0]
        transparency, values = values[..., place], np.delete(values, place, axis=2)
    if kind == _INKS:
        values = from_inks(values[..., :4])
    elif kind == _WHITE_IS_ZERO:
        values = negative(values, page.bitspersample)
    if transparency is not None:
        values = on_white(values, transparency, premultiplied=extra[alphas[0]] == _PREMULTIPLIED)
    return values[..., 0] if values.shape[2] == 1 else values


def _four_inks(values: np.ndarray, page: Any) -> bool:
    """Whether they are cyan, magenta, yellow and black (InkSet 1, or not said)."""
    tag = page.tags.get(_INK_SET)
    return values.ndim == 3 and values.shape[2] >= 4 and (tag is None or tag.value == 1)
