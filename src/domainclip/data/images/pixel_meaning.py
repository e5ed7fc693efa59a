"""From a file's numbers to what they mean to the eye, at any depth: negatives, palettes, inks, transparency, turns.

Pillow does all this for images of 8 bits, and these functions do as it does.
"""

from __future__ import annotations

import numpy as np


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Upright, by an orientation 1 … 8 of EXIF or TIFF; any other number turns nothing."""
    upright = values.swapaxes(0, 1) if orientation in {5, 6, 7, 8} else values
    upright = upright[:, ::-1] if orientation in {2, 3, 6, 7} else upright
    upright = upright[::-1] if orientation in {3, 4, 7, 8} else upright
    return values if upright is values else np.ascontiguousarray(upright)


def negative(values: np.ndarray, bits: int) -> np.ndarray:
    """An image whose low numbers are white with high ones white. ``bits``: what an unsigned number may fill."""
    if values.dtype.kind == "u":
        return np.array(2**bits - 1, values.dtype) - values
    if values.dtype.kind in "bi":
        return ~values  # a signed number's range turned round
    finite = values[np.isfinite(values)]
    return finite.min() + finite.max() - values if finite.size else values


def through_palette(indices: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """uint8 ``[h, w, 3]``. ``colours``: uint16 ``[3, n]``, as TIFF keeps them."""
    return (colours >> 8).astype(np.uint8).T[indices.clip(0, colours.shape[1] - 1)]


def from_inks(values: np.ndarray) -> np.ndarray:
    """RGB of cyan, magenta, yellow and black ``[h, w, 4]``, without a colour profile."""
    white = white_of(values)
    light = 1 - values.astype(np.float64) / white
    return _as_type(light[..., :3] * light[..., 3:] * white, values.dtype)


def on_white(colours: np.ndarray, alpha: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """Transparency laid on white. ``colours``: ``[h, w, c]``; ``alpha``: ``[h, w]`` of the same type."""
    white = white_of(colours)
    if (alpha == white).all():
        return colours
    fraction = np.divide(alpha, white, dtype=np.float32 if colours.dtype.itemsize <= 2 else np.float64).clip(0, 1)
    fraction = fraction[..., None]
    return _as_type((colours if premultiplied else colours * fraction) + (1 - fraction) * white, colours.dtype)


def white_of(values: np.ndarray) -> float:
    """The number that is white in a type; 1 for fractions."""
    return float(np.iinfo(values.dtype).max) if values.dtype.kind in "ui" else 1.0


def _as_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return values.round().clip(0, np.iinfo(dtype).max).astype(dtype) if dtype.kind in "ui" else values.astype(dtype)
