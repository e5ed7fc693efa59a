"""Reading every image of a data set once and keeping what the checks need."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from domainclip.data.checks.duplicates import fingerprint
from domainclip.data.images.deep import bits_used
from domainclip.data.images.file_facts import FileFacts
from domainclip.data.images.reader import MAX_PIXELS, image_header, read_array, rgb_of
from domainclip.errors import ImageError
from domainclip.waiting import said_while_waiting

_CHUNK = 64
_ENOUGH = 128
"""Pixels of the shorter side that are decoded at least: a JPEG of more comes at some eighths of its size, which takes a
third of the time and is damaged wherever the whole is."""
BLANK = 3
"""Grey levels of 255 that a blank image may differ within: what JPEG makes of one colour."""


@dataclass(slots=True)
class ImageFacts:
    """``problem`` is None where the image can be used; ``oversized`` where that is its problem.

    Sizes in pixels, before any rotation that EXIF asks for; ``fingerprint`` is uint8 ``[16, 18]``. ``bits``: of whole
    numbers kept in more than 8 bits, how many are used, and 0 of all others. ``blank``: one colour, more or less.
    """

    path: Path
    problem: str | None = None
    oversized: bool = False
    width: int = 0
    height: int = 0
    frames: int = 1
    file: FileFacts | None = None
    fingerprint: np.ndarray | None = None
    channels: int = 0
    bits: int = 0
    blank: bool = False


def inspect_image(path: Path, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Decode one image. What is wrong with it is told in ``problem``, never raised.

    Args:
        path: Its file.
        max_pixels: An image of more is oversized.

    Returns:
        What was found until something was wrong.
    """
    facts = ImageFacts(path)
    try:
        facts.file = FileFacts.of(path)
        header = image_header(path, max_pixels)
        facts.width, facts.height, facts.frames = header.width, header.height, header.frames
        values = read_array(path, max_pixels, at_least=_ENOUGH, large=0)
        facts.channels = values.shape[2] if values.ndim == 3 else 1
        facts.bits = bits_used(values) if values.dtype.kind == "u" and values.dtype.itemsize > 1 else 0
        shown = rgb_of(values)
        facts.blank = max(int(np.ptp(shown[..., channel])) for channel in range(3)) <= BLANK
        facts.fingerprint = fingerprint(shown)
    except OSError as error:
        facts.problem = f"{path}: {error.strerror or error}"
    except ImageError as error:
        facts.problem = str(error)
        facts.oversized = " pixels" in facts.problem.removeprefix(str(path))
    return facts


def inspect_images(
    paths: Sequence[Path], max_pixels: int = MAX_PIXELS, workers: int | None = None
) -> Iterator[ImageFacts]:
    """Decode images in a pool of threads (decoding releases the interpreter's lock).

    Args:
        paths: Their files.
        max_pixels: An image of more is oversized.
        workers: Threads; as many as cores but at most eight, if left out.

    Returns:
        Facts in the order of ``paths``, as they are asked for.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    # A few thousand at a time: a future for each of a million images would itself fill the memory.
    span = _CHUNK * workers * 4
    with ThreadPoolExecutor(workers) as pool:
        spans = (paths[start : start + span] for start in range(0, len(paths), span))
        found = (facts for part in spans for facts in pool.map(lambda path: inspect_image(path, max_pixels), part))
        yield from said_while_waiting(found, len(paths), "Looking at the images (damage, copies)")
