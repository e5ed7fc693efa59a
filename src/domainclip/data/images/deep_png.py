"""PNG images of 16 bits a channel in colour or with transparency, of which Pillow alone keeps the upper eight.

Its decoder undoes the compression either way and picks the bytes last, by a raw mode: with another one it gives the
lower eight.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image

from domainclip.data.images.pixel_meaning import on_white, turned

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY_ALPHA, _RGB, _RGBA = 4, 2, 6
"""Colour types of PNG (W3C PNG specification, 11.2.1)."""
_RAW_MODES = {_GREY_ALPHA: ["RGBA"], _RGB: ["RGB;16B", "RGB;16L"], _RGBA: ["RGBA;16B", "RGBA;16L"]}
"""Grey and alpha have four bytes a pixel in all, which is what Pillow's RGBA holds."""
_ORIENTATION = 0x0112


def is_deep_png(data: bytes) -> bool:
    return data[:8] == _SIGNATURE and data[12:16] == b"IHDR" and data[24] == 16 and data[25] in _RAW_MODES


def read_deep_png(data: bytes) -> np.ndarray:
    """uint16, upright: ``[h, w, 3]``, or ``[h, w]`` of grey and alpha; what is transparent is laid on white. Raises as
    Pillow does on damaged bytes."""
    kind = data[25]
    passes = []
    for mode in _RAW_MODES[kind]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        with image:
            tile: Any = (*image.tile[0][:3], mode)
            image.tile = [tile]
            passes.append(np.asarray(image).astype(np.uint16))
            transparent, orientation = image.info.get("transparency"), image.getexif().get(_ORIENTATION, 1)
    if kind == _GREY_ALPHA:
        values = passes[0][..., 0::2] << 8 | passes[0][..., 1::2]
    else:
        values = passes[0] << 8 | passes[1]
    if kind == _RGB:
        if isinstance(transparent, tuple):  # one colour, of 16 bits
            values[(values == np.array(transparent)).all(axis=2)] = 65535
        return turned(values, orientation)
    colours = on_white(values[..., :-1], values[..., -1])
    return turned(colours[..., 0] if kind == _GREY_ALPHA else colours, orientation)
