"""Which pages of a TIFF are the image's, and whether Pillow reads them as they are meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.images.pages import refuse_unlike

_SUBFILE, _BITS, _DESCRIPTION = 0x00FE, 0x0102, 0x010E
_COPY_OR_MASK = 1 | 4
"""Bits of NewSubfileType: a smaller copy of another page, or a mask for one."""


@dataclass(frozen=True)
class TiffPage:
    width: int
    height: int
    mode: str
    bits: int
    extra: bool

    @classmethod
    def of(cls, image: Image.Image) -> TiffPage:
        tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
        extra = bool(int(tags.get(_SUBFILE, 0)) & _COPY_OR_MASK)
        return cls(image.width, image.height, image.mode, max(_tuple(tags.get(_BITS, 1))), extra)

    @property
    def kind(self) -> tuple[tuple[int, int], str]:
        return (self.height, self.width), f"{self.mode} of {self.bits} bits"


def pages_for_pillow(image: Image.Image, settings: ImagePreprocessing) -> list[TiffPage] | None:
    """The pages that Pillow found, of which only the first is looked at where it is the image; None where the file is
    one for tifffile: stacks with channels as pages, and deep colour, of which Pillow keeps the upper eight bits."""
    first = TiffPage.of(image)
    described = str(getattr(image, "tag_v2", {}).get(_DESCRIPTION, ""))
    if described.startswith("ImageJ=") or "<OME" in described:
        return None
    if first.bits > 8 and first.mode in {"RGB", "RGBA", "RGBX", "CMYK", "LAB"}:
        return None
    if settings.page == "first":
        return [first]
    count = getattr(image, "n_frames", 1)
    if count > 1 and described.startswith("{") and '"axes"' in described:  # tifffile's own
        return None
    found = [first]
    for number in range(1, count):
        image.seek(number)
        found.append(TiffPage.of(image))
    return found


def page_indices(pages: Sequence[TiffPage], settings: ImagePreprocessing, path: Path) -> list[int]:
    """Those that ``settings.page`` chooses from. The middle one is sought among the pages like the first, beside which
    scanners and microscopes keep labels and smaller copies; error and mean look at all. Raises ``ImageError`` for
    unlike pages that are to be averaged."""
    first = pages[0]
    if settings.page == "middle":
        return [number for number, page in enumerate(pages) if page.kind == first.kind]
    numbers = [number for number, page in enumerate(pages) if number == 0 or not page.extra]
    if settings.page == "mean":
        for number in numbers:
            refuse_unlike(number, pages[number].kind, first.kind, path)
    return numbers


def _tuple(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)
