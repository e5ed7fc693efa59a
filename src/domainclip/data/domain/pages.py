"""Which page of a file with several is the picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from domainclip.config.domain_images import ImagePreprocessing
from domainclip.errors import PictureError


def chosen_page(read: Callable[[int], np.ndarray], count: int, settings: ImagePreprocessing, path: Path) -> np.ndarray:
    """The page that ``settings.page`` asks for, of ``count`` that ``read(number)`` gives; only what is needed is read.

    The mean is float32, or uint8 where the pages are. Raises ``PictureError`` for several pages where the policy is
    ``error``, and for pages of several shapes that are to be averaged.
    """
    if count == 1 or settings.page == "first":
        return read(0)
    if settings.page == "error":
        raise PictureError(
            f"{path}: {count} pages or frames, and page=error refuses such files: export the one that matters, or set "
            "page to first, middle or mean"
        )
    if settings.page == "middle":
        return read(count // 2)
    first = read(0)
    total = first.astype(np.float32)
    for number in range(1, count):
        page = read(number)
        if page.shape != total.shape:
            raise PictureError(
                f"{path}: page {number + 1} is {page.shape} and the first {total.shape}: page=mean needs pages of one "
                "size. Set page to first or middle"
            )
        total += page
    total /= count
    return total.round().astype(np.uint8) if first.dtype == np.uint8 else total
