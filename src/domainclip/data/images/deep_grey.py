"""Grey of more than 8 bits as Pillow holds it: the numbers that the file means, and bytes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from domainclip.data.images.pixel_meaning import negative

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0102, 0x0106, 0x0153


def is_deep_grey(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode in {"I", "F"}


def grey_numbers(image: Image.Image) -> np.ndarray:
    """``[h, w]``: uint16 where the numbers fit, else int32, int64 (from uint32) or float32.

    Of a TIFF, Pillow gives unsigned numbers of 32 bits as signed ones, and those above 8 bits of which 0 is white as
    they are.
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
    return negative(values, 16) if tags.get(_PHOTOMETRIC) == 0 else values


def grey_bytes(values: np.ndarray) -> np.ndarray:
    """uint8: 16 bits over their whole range (as they are where all fit a byte), all else over the image's own."""
    if values.dtype.kind == "f":
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        return np.nan_to_num((values - low) / (high - low or 1.0) * 255).clip(0, 255).astype(np.uint8)
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if low >= 0 and high < 2**16:
        low, high = 0.0, 65535.0 if high > 255 else 255.0
    else:
        low, high = float(values.min()), float(values.max())
    scaled = (values.astype(np.float32) - low) * (255.0 / (high - low or 1.0))
    return scaled.round().clip(0, 255).astype(np.uint8)


def _first(tags: Mapping[int, Any], tag: int) -> int:
    """A TIFF's tag, of which each channel may have one; 1 where it is missing (the standard's default for both)."""
    found = tags.get(tag, 1)
    return int(found[0] if isinstance(found, tuple) else found)
