"""Images of more than 8 bits a channel: the numbers that a file means, and what they mean to the eye.

Pillow holds deep grey as it is, keeps of a PNG of 16 bits in colour or with transparency the upper eight alone, and
knows negatives, palettes, inks, transparency and turns of 8 bits only. The functions here do as it does, at any depth.
Its PNG decoder undoes the compression either way and picks the bytes last, by a raw mode: with another one it gives
the lower eight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from PIL import Image


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image upright.

    Args:
        values: ``[h, w]`` or ``[h, w, c]``.
        orientation: 1 … 8, as EXIF and TIFF have it; any other number turns nothing.

    Returns:
        The image upright, contiguous; ``values`` itself where nothing is turned.
    """
    upright = values.swapaxes(0, 1) if orientation in {5, 6, 7, 8} else values
    upright = upright[:, ::-1] if orientation in {2, 3, 6, 7} else upright
    upright = upright[::-1] if orientation in {3, 4, 7, 8} else upright
    return values if upright is values else np.ascontiguousarray(upright)


def negative(values: np.ndarray, bits: int) -> np.ndarray:
    """An image whose low numbers are white with high ones white.

    Args:
        values: Numbers of any type and shape.
        bits: What an unsigned number may fill.

    Returns:
        The same type and shape. Fractions are mirrored within their own finite range.
    """
    if values.dtype.kind == "u":
        return np.array(2**bits - 1, values.dtype) - values
    if values.dtype.kind in "bi":
        return ~values  # a signed number's range turned round
    finite = values[np.isfinite(values)]
    return finite.min() + finite.max() - values if finite.size else values


def through_palette(indices: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The colours that indices stand for.

    Args:
        indices: Whole numbers ``[h, w]``; those beyond the palette's end are taken for its last.
        colours: uint16 ``[3, n]``, as TIFF keeps them.

    Returns:
        uint8 ``[h, w, 3]``, the upper eight bits.
    """
    return (colours >> 8).astype(np.uint8).T[indices.clip(0, colours.shape[1] - 1)]


def from_inks(values: np.ndarray) -> np.ndarray:
    """RGB of cyan, magenta, yellow and black, without a colour profile.

    Args:
        values: ``[h, w, 4]``; the white of their type (``white_of``) is full ink.

    Returns:
        ``[h, w, 3]`` of the same type.
    """
    white = white_of(values)
    light = 1 - values.astype(np.float64) / white
    return _as_type(light[..., :3] * light[..., 3:] * white, values.dtype)


def on_white(colours: np.ndarray, alpha: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """Lay transparency on white.

    Args:
        colours: ``[h, w, c]``.
        alpha: ``[h, w]`` of the same type; its white (``white_of``) is opaque.
        premultiplied: Whether the colours have been multiplied by alpha already.

    Returns:
        ``[h, w, c]`` of the same type; ``colours`` itself where all is opaque.
    """
    white = white_of(colours)
    if (alpha == white).all():
        return colours
    fraction = np.divide(alpha, white, dtype=np.float32 if colours.dtype.itemsize <= 2 else np.float64).clip(0, 1)
    fraction = fraction[..., None]
    return _as_type((colours if premultiplied else colours * fraction) + (1 - fraction) * white, colours.dtype)


def white_of(values: np.ndarray) -> float:
    """The number that is white in a type.

    Args:
        values: Numbers of the type.

    Returns:
        The largest whole number of the type; 1 for fractions.
    """
    return float(np.iinfo(values.dtype).max) if values.dtype.kind in "ui" else 1.0


def _as_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return values.round().clip(0, np.iinfo(dtype).max).astype(dtype) if dtype.kind in "ui" else values.astype(dtype)


_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0102, 0x0106, 0x0153
NO_DATA = 42113
"""GDAL_NODATA: what stands for pixels that were not measured."""


def is_deep_grey(image: Image.Image) -> bool:
    """Whether Pillow holds an image as grey of more than 8 bits.

    Args:
        image: The image.

    Returns:
        Whether its mode is ``I``, ``F`` or one of ``I;16``.
    """
    return image.mode.startswith("I;16") or image.mode in {"I", "F"}


def grey_numbers(image: Image.Image) -> np.ndarray:
    """The numbers of a deep grey image, as the file means them.

    Of a TIFF, Pillow gives unsigned numbers of 32 bits as signed ones, and those above 8 bits of which 0 is white as
    they are.

    Args:
        image: One for which ``is_deep_grey`` holds.

    Returns:
        ``[h, w]``: uint16 where the numbers fit, else int32, int64 (from uint32) or float32.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode == "I":
        if _first(tags, _BITS) == 32 and _first(tags, _SAMPLE_FORMAT) == 1:
            values = values.view(np.uint32).astype(np.int64)
        if values.min(initial=0) >= 0 and values.max(initial=0) < 2**16:
            values = values.astype(np.uint16)
    elif image.mode != "F":
        values = values.astype(np.uint16)
    values = without_no_data(values, tags.get(NO_DATA))
    return negative(values, 16) if tags.get(_PHOTOMETRIC) == 0 else values


def without_no_data(values: np.ndarray, declared: object) -> np.ndarray:
    """Pixels that were not measured, as dark as the darkest that was: no range is spent on what stands for them.

    Args:
        values: ``[h, w]`` or ``[h, w, c]``. Bytes, which have one range for all images, stay as they are.
        declared: GDAL's tag, a number as text; None where there is none.

    Returns:
        The same type and shape. A pixel is none where all of its channels say so.
    """
    if not isinstance(declared, str) or values.dtype.itemsize == 1:
        return values
    try:
        number = float(declared.strip().strip("\x00"))
        mark = values.dtype.type(number if values.dtype.kind == "f" else int(number))
    except (ValueError, OverflowError):  # a number that no pixel of this type can be
        return values
    layers = values if values.ndim == 3 else values[..., None]
    missing = (layers == mark).all(axis=2)
    if not missing.any() or missing.all():
        return values
    filled = layers.copy()
    filled[missing] = layers[~missing].min(axis=0)
    return filled.reshape(values.shape)


_DEPTHS = (8, 10, 12, 14, 16)
"""Bits that detectors have. Files keep those of 10, 12 and 14 bits in 16, and seldom say so."""


def bits_used(values: np.ndarray) -> int:
    """The depth of the detector that whole numbers without a sign are probably from.

    Args:
        values: Numbers of an unsigned type.

    Returns:
        The fewest of 8, 10, 12, 14 and 16 bits that hold the largest; all of the type's where these do not.
    """
    largest = int(values.max(initial=0))
    return next((bits for bits in _DEPTHS if largest < 2**bits), 8 * values.dtype.itemsize)


def _first(tags: Mapping[int, Any], tag: int) -> int:
    """A TIFF's tag, of which each channel may have one; 1 where it is missing (the standard's default for both)."""
    found = tags.get(tag, 1)
    return int(found[0] if isinstance(found, tuple) else found)


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY_ALPHA, _RGB, _RGBA = 4, 2, 6
"""Colour types of PNG (W3C PNG specification, 11.2.1)."""
_RAW_MODES = {_GREY_ALPHA: ["RGBA"], _RGB: ["RGB;16B", "RGB;16L"], _RGBA: ["RGBA;16B", "RGBA;16L"]}
"""Grey and alpha have four bytes a pixel in all, which is what Pillow's RGBA holds."""


def is_deep_png(data: bytes) -> bool:
    """Whether a file is a PNG of 16 bits a channel in colour or with transparency.

    Args:
        data: The file's first 26 bytes at least.

    Returns:
        Whether it is one for ``read_deep_png``; 16-bit grey without transparency is not.
    """
    return data[:8] == _SIGNATURE and data[12:16] == b"IHDR" and data[24] == 16 and data[25] in _RAW_MODES


def read_deep_png(file: BinaryIO, orientation: int) -> np.ndarray:
    """Read a PNG at all its 16 bits, upright; what is transparent is laid on white.

    Args:
        file: The file, for which ``is_deep_png`` holds.
        orientation: As its EXIF has it.

    Returns:
        uint16 ``[h, w, 3]``, or ``[h, w]`` of grey and alpha.

    Raises:
        Exception: The bytes are damaged; what Pillow raises then (``pages.DECODE_ERRORS`` and its own).
    """
    file.seek(0)
    kind = file.read(26)[25]
    values: np.ndarray = np.zeros(1, np.uint16)
    for mode in _RAW_MODES[kind]:
        file.seek(0)
        with Image.open(file) as image:
            tile: Any = (*image.tile[0][:3], mode)
            image.tile = [tile]
            upper, values = values, np.asarray(image).astype(np.uint16)
            upper <<= 8  # in place: a third copy of a large image is none of it
            values |= upper
            transparent = image.info.get("transparency")
    if kind == _GREY_ALPHA:
        values = values[..., 0::2] << 8 | values[..., 1::2]
    if kind == _RGB:
        if isinstance(transparent, tuple):  # one colour, of 16 bits
            values[(values == np.array(transparent)).all(axis=2)] = 65535
        return turned(values, orientation)
    colours = on_white(values[..., :-1], values[..., -1])
    return turned(colours[..., 0] if kind == _GREY_ALPHA else colours, orientation)
