"""Which page of a file with several is the image."""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.errors import ImageError, ImageTooLargeError

DECODE_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, TypeError, LookupError, RuntimeError, SyntaxError)
DECODE_ERRORS += (EOFError, ArithmeticError, struct.error, zlib.error, lzma.LZMAError)
"""What decoders raise on damaged bytes (found by damaging images of every format at random)."""


MOST_BYTES = 4
"""A decoded image may take so many bytes for each of the pixels that are allowed: 8 bits of four channels, or 16 of
two. Deeper ones have to have fewer pixels."""


class ImageSize(NamedTuple):
    """What a file says of an image before it is decoded; ``pages`` counts frames, too, and ``mode`` is free text."""

    width: int
    height: int
    pages: int
    mode: str
    bytes_per_pixel: int


def refuse_above(max_pixels: int, width: int, height: int, path: Path, bytes_per_pixel: int = 1) -> None:
    """Refuse an image that is too large, before it is decoded.

    Args:
        max_pixels: Pixels that are allowed.
        width: Of the image, in pixels.
        height: Of the image, in pixels.
        path: The file, for messages.
        bytes_per_pixel: Of all channels, decoded.

    Raises:
        ImageTooLargeError: It has more pixels, or would take more memory than ``MOST_BYTES`` for each that is allowed.
    """
    pixels = width * height
    if pixels > max_pixels:
        raise ImageTooLargeError(
            f"{path}: {width}×{height} is {pixels:,} pixels, above max_image_pixels={max_pixels:,}; "
            "shrink the image first"
        )
    if pixels * bytes_per_pixel > MOST_BYTES * max_pixels:
        raise ImageTooLargeError(
            f"{path}: {width}×{height} pixels of {bytes_per_pixel} bytes take {pixels * bytes_per_pixel:,} bytes, "
            f"above {MOST_BYTES} for each of max_image_pixels={max_pixels:,}; shrink the image first, or cut it into "
            "tiles"
        )


def chosen_page(read: Callable[[int], np.ndarray], count: int, settings: ImagePreprocessing, path: Path) -> np.ndarray:
    """The page that ``settings.page`` asks for; only what is needed is read.

    Args:
        read: Gives the page of a number, counted from 0.
        count: How many pages there are.
        settings: ``page`` is ``first``, ``middle``, ``mean`` or ``error``.
        path: The file, for messages.

    Returns:
        The page. A mean is float32, or uint8 where the pages are.

    Raises:
        ImageError: There are several pages and the policy is ``error``, or unlike pages are to be averaged.
    """
    if count == 1 or settings.page == "first":
        return read(0)
    if settings.page == "error":
        raise ImageError(
            f"{path}: {count} pages or frames, and page=error refuses such files: export the one that matters, or set "
            "page to first, middle or mean"
        )
    if settings.page == "middle":
        return read(count // 2)
    first = read(0)
    total, bytes_alone = first.astype(np.float32), first.dtype == np.uint8
    for number in range(1, count):
        page = read(number)
        refuse_unlike(number, (page.shape, ""), (first.shape, ""), path)
        total += page
        bytes_alone = bytes_alone and page.dtype == np.uint8
    total /= count
    return total.round().astype(np.uint8) if bytes_alone else total


def refuse_unlike(number: int, page: tuple[Sequence[int], str], first: tuple[Sequence[int], str], path: Path) -> None:
    """Refuse a page of another shape or type than the first.

    Args:
        number: Which page, counted from 0.
        page: Its shape and type.
        first: Shape and type of the first page.
        path: The file, for messages.

    Raises:
        ImageError: They differ.
    """
    if page != first:
        one, other = ("×".join(str(resolution) for resolution in shape) + f" {kind}" for shape, kind in (page, first))
        raise ImageError(
            f"{path}: page {number + 1} is {one} and the first {other}: page=mean needs pages of one size and type. "
            "Set page to first or middle"
        )
