"""The steps of a domain before a model's own resize, in order: the part without chance."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.images.reader import read_array
from domainclip.data.images.steps import clahe, crop_border, divide_by_background, grey_world, to_levels
from domainclip.errors import PictureError

LARGE = 2**22
"""Pictures with more pixels are shrunk before the steps, as far as the model's side allows: float32 copies of one of
12,000 × 9,000 would take gigabytes."""
LARGEST = 2**24
"""Nor do the steps see more than this where pictures are tiled: a larger picture's tiles show more of it each."""


class DomainImageChain:
    """Applies the steps of ``settings`` that have no chance in them; training and evaluation share one.

    ``target`` below is the side in pixels that the shorter side of a picture (of a tile, where pictures are tiled)
    keeps at least when it is shrunk; about twice the model's own.
    """

    def __init__(self, settings: ImagePreprocessing | None = None) -> None:
        self.settings = settings or ImagePreprocessing()

    @property
    def tiled(self) -> bool:
        """Whether large pictures are cut into tiles."""
        return self.settings.tile_side is not None

    def tiles(self, picture: np.ndarray) -> bool:
        """Whether this one is."""
        return self.settings.tile_side is not None and max(picture.shape[:2]) > self.settings.tile_side

    def read(self, path: Path, max_pixels: int, target: int = 512) -> np.ndarray:
        """A file's picture for ``apply``, at its own depth; a large JPEG that is not tiled comes smaller.

        Raises ``PictureError`` for what cannot be read, ``MissingExtraError`` for a format whose library is missing.
        """
        return read_array(path, max_pixels, self.settings, None if self.tiled else target)

    def apply(self, picture: np.ndarray, target: int = 512) -> UInt8[np.ndarray, "h w 3"]:
        """The whole picture after the steps, RGB. ``picture``: uint8, uint16 or float, ``[h, w]`` or ``[h, w, c]``.

        A picture that is to be tiled comes so that its tiles have ``tile_pixels(target)`` a side. Raises
        ``PictureError`` for what is no picture, ``MissingExtraError`` where a step's library is missing.
        """
        settings = self.settings
        if picture.ndim not in (2, 3) or 0 in picture.shape:
            raise PictureError(f"A picture has rows, columns and channels, not the shape {picture.shape}")
        untouched = picture.dtype == np.uint8 and not settings.changes_pictures
        if untouched and not self.tiled:
            return _three_channels(picture)
        picture = shrink(picture, self._reduction(picture.shape[0], picture.shape[1], target))
        if untouched:
            return _three_channels(picture)
        levels = to_levels(picture, settings)
        if settings.crop_border != "off":
            levels = crop_border(levels, settings)
        if settings.illumination == "divide":
            levels = divide_by_background(levels, settings.illumination_scale)
        elif settings.illumination == "grey_world":
            levels = grey_world(levels)
        if settings.clahe_clip_limit is not None:
            levels = clahe(levels, settings.clahe_clip_limit, settings.clahe_tiles)
        return _three_channels((levels * 255).round().astype(np.uint8))

    def _reduction(self, height: int, width: int, target: int) -> int:
        """The whole number that both sides are divided by before the steps."""
        if self.settings.tile_side is not None and max(height, width) > self.settings.tile_side:
            for_tiles = self._tile_reduction(target)
            if not self.settings.changes_pictures:
                return for_tiles
            return max(for_tiles, math.ceil(math.sqrt(height * width / LARGEST)))
        if height * width <= LARGE:
            return 1
        return max(1, min(math.ceil(math.sqrt(height * width / LARGE)), min(height, width) // target))

    def _tile_reduction(self, target: int) -> int:
        assert self.settings.tile_side is not None
        return max(1, self.settings.tile_side // target)

    def tile_pixels(self, target: int) -> int:
        """Side of a tile in what ``apply`` returns."""
        assert self.settings.tile_side is not None
        return self.settings.tile_side // self._tile_reduction(target)

    def views(self, picture: np.ndarray, target: int = 512) -> list[UInt8[np.ndarray, "h w 3"]]:
        """What an evaluation shows the model of a picture: all its tiles, or the whole where it is not tiled."""
        whole = self.apply(picture, target)
        if not self.tiles(picture):
            return [whole]
        assert self.settings.tile_side is not None
        boxes = tile_boxes(whole.shape[0], whole.shape[1], self.tile_pixels(target), self.settings.tile_overlap)
        return [whole[top : top + height, left : left + width] for top, left, height, width in boxes]


def tile_boxes(height: int, width: int, side: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """Top, left, height and width of the tiles that cover a picture, in pixels, row by row.

    As few as overlap by at least ``overlap`` (a share of ``side``), evenly spaced: no tile hangs over the edge, and
    none is smaller than the others. A side shorter than ``side`` is one tile's.
    """

    def starts(length: int) -> list[int]:
        if length <= side:
            return [0]
        least = min(side - 1, math.ceil(side * overlap))
        count = math.ceil((length - least) / (side - least))
        return [round(number * (length - side) / (count - 1)) for number in range(count)]

    return [(top, left, min(side, height), min(side, width)) for top in starts(height) for left in starts(width)]


def shrink(picture: np.ndarray, factor: int) -> np.ndarray:
    """Means of ``factor`` × ``factor`` blocks; bytes stay bytes, all else becomes float32 (in its own units)."""
    if factor == 1:
        return picture
    if picture.dtype == np.uint8 and (picture.ndim == 2 or picture.shape[2] == 3):
        return np.asarray(Image.fromarray(picture).reduce(factor))
    layers = picture[..., None] if picture.ndim == 2 else picture
    small = [
        np.asarray(Image.fromarray(layers[..., c].astype(np.float32)).reduce(factor)) for c in range(layers.shape[2])
    ]
    shrunk = np.stack(small, axis=2).reshape(*small[0].shape, *picture.shape[2:])
    return shrunk.round().astype(picture.dtype) if np.issubdtype(picture.dtype, np.unsignedinteger) else shrunk


def _three_channels(picture: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    layers = picture[..., None] if picture.ndim == 2 else picture
    if layers.shape[2] == 2:
        return np.concatenate([layers, np.zeros_like(layers[..., :1])], axis=2)
    return np.repeat(layers, 3, axis=2) if layers.shape[2] == 1 else np.ascontiguousarray(layers[..., :3])
