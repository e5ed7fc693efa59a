"""The steps of a domain before a model's own resize, in order: the part without chance."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.images.reader import ImageBytes, read_array
from domainclip.data.images.steps import clahe, crop_border, divide_by_background, grey_world, to_levels
from domainclip.errors import ImageError

LARGE = 2**22
"""Images with more pixels are shrunk before the steps, as far as the model's resolution allows: float32 copies of one
of 12,000 × 9,000 would take gigabytes."""
LARGEST = 2**24
"""Nor do the steps see more than this where images are tiled: a larger image's tiles show more of it each."""


class DomainImagePipeline:
    """Applies the steps of ``settings`` that have no chance in them; training and evaluation share one.

    ``target`` below is the resolution in pixels that the shorter side of an image (of a tile, where images are tiled)
    keeps at least when it is shrunk; about twice the model's own.
    """

    def __init__(self, settings: ImagePreprocessing | None = None) -> None:
        self.settings = settings or ImagePreprocessing()

    @property
    def tiled(self) -> bool:
        """Whether large images are cut into tiles."""
        return self.settings.tile_size is not None

    def tiles(self, image: np.ndarray) -> bool:
        """Whether an image is to be cut into tiles.

        Args:
            image: ``[h, w]`` or ``[h, w, c]``, as ``read`` gives it.

        Returns:
            Whether its longer side is above ``tile_size``.
        """
        return self.settings.tile_size is not None and max(image.shape[:2]) > self.settings.tile_size

    def read(self, path: Path | ImageBytes, max_pixels: int, target: int = 512) -> np.ndarray:
        """Read a file for ``apply``.

        Args:
            path: The file, or its content.
            max_pixels: Larger images are refused.
            target: The shorter side in pixels that is kept at least: a large JPEG that is not tiled comes smaller.

        Returns:
            The image at its own depth, ``[h, w]`` or ``[h, w, c]``.

        Raises:
            ImageError: The file cannot be read, or has more than ``max_pixels`` pixels.
            MissingExtraError: The library for its format is missing.
        """
        return read_array(path, max_pixels, self.settings, None if self.tiled else target)

    def reads_like(self, other: DomainImagePipeline) -> bool:
        """Whether ``read`` gives the same pixels of every file that need not come smaller.

        Args:
            other: The pipeline to compare with.

        Returns:
            Whether page, DICOM window and the treatment of large images agree.
        """
        mine, others = self.settings, other.settings
        return self.tiled == other.tiled and all(
            getattr(mine, key) == getattr(others, key)
            for key in ("page", "dicom_window", "window_center", "window_width")
        )

    def apply(self, image: np.ndarray, target: int = 512) -> UInt8[np.ndarray, "h w 3"]:
        """The whole image after the steps.

        Args:
            image: uint8, uint16 or float, ``[h, w]`` or ``[h, w, c]``.
            target: The shorter side in pixels that the image, or a tile, keeps at least when it is shrunk.

        Returns:
            uint8 RGB ``[h, w, 3]``. An image that is to be tiled comes so that its tiles have a resolution of
            ``tile_pixels(target)``.

        Raises:
            ImageError: The array is no image.
            MissingExtraError: A step's library is missing.
        """
        settings = self.settings
        if image.ndim not in (2, 3) or 0 in image.shape:
            raise ImageError(f"An image has rows, columns and channels, not the shape {image.shape}")
        untouched = image.dtype == np.uint8 and not settings.changes_images
        if untouched and not self.tiled:
            return _three_channels(image)
        image = shrink(image, self._reduction(image.shape[0], image.shape[1], target))
        if untouched:
            return _three_channels(image)
        levels = to_levels(image, settings)
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
        if self.settings.tile_size is not None and max(height, width) > self.settings.tile_size:
            for_tiles = self._tile_reduction(target)
            if not self.settings.changes_images:
                return for_tiles
            return max(for_tiles, math.ceil(math.sqrt(height * width / LARGEST)))
        if height * width <= LARGE:
            return 1
        return max(1, min(math.ceil(math.sqrt(height * width / LARGE)), min(height, width) // target))

    def _tile_reduction(self, target: int) -> int:
        assert self.settings.tile_size is not None
        return max(1, self.settings.tile_size // target)

    def tile_pixels(self, target: int) -> int:
        """Resolution of a tile in what ``apply`` returns.

        Args:
            target: As for ``apply``.

        Returns:
            Pixels, at least ``target`` where ``tile_size`` is.
        """
        assert self.settings.tile_size is not None
        return self.settings.tile_size // self._tile_reduction(target)

    def views(self, image: np.ndarray, target: int = 512) -> list[UInt8[np.ndarray, "h w 3"]]:
        """What an evaluation shows the model of an image.

        Args:
            image: As for ``apply``.
            target: As for ``apply``.

        Returns:
            uint8 ``[h, w, 3]`` each: all its tiles, or the whole where it is not tiled.

        Raises:
            ImageError: The array is no image.
            MissingExtraError: A step's library is missing.
        """
        whole = self.apply(image, target)
        if not self.tiles(image):
            return [whole]
        boxes = self.boxes(whole.shape[0], whole.shape[1], target)
        return [whole[top : top + height, left : left + width] for top, left, height, width in boxes]

    def boxes(self, height: int, width: int, target: int) -> list[tuple[int, int, int, int]]:
        """The tiles of what ``apply`` returns.

        Args:
            height: Of what ``apply`` returned, in pixels.
            width: Of what ``apply`` returned, in pixels.
            target: As given to ``apply``.

        Returns:
            Top, left, height and width of each, row by row.
        """
        return tile_boxes(height, width, self.tile_pixels(target), self.settings.tile_overlap)


def tile_boxes(height: int, width: int, size: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """The tiles that cover an image.

    As few as overlap by at least ``overlap``, evenly spaced: no tile hangs over the edge, and none is smaller than the
    others. A side shorter than ``size`` is one tile's.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        size: Of a tile, in pixels.
        overlap: The least overlap of neighbours, as a fraction of ``size``.

    Returns:
        Top, left, height and width of each in pixels, row by row.
    """

    def starts(length: int) -> list[int]:
        if length <= size:
            return [0]
        least = min(size - 1, math.ceil(size * overlap))
        count = math.ceil((length - least) / (size - least))
        return [round(index * (length - size) / (count - 1)) for index in range(count)]

    return [(top, left, min(size, height), min(size, width)) for top in starts(height) for left in starts(width)]


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of square blocks of pixels.

    Args:
        image: ``[h, w]`` or ``[h, w, c]`` of any depth.
        factor: Side of a block in pixels.

    Returns:
        The smaller image. Whole numbers without a sign keep their type, all else becomes float32 in its own units;
        ``image`` itself for a factor of 1.
    """
    if factor == 1:
        return image
    if image.dtype == np.uint8 and (image.ndim == 2 or image.shape[2] == 3):
        return np.asarray(Image.fromarray(image).reduce(factor))
    layers = image[..., None] if image.ndim == 2 else image
    small = [
        np.asarray(Image.fromarray(layers[..., c].astype(np.float32)).reduce(factor)) for c in range(layers.shape[2])
    ]
    shrunk = np.stack(small, axis=2).reshape(*small[0].shape, *image.shape[2:])
    return shrunk.round().astype(image.dtype) if np.issubdtype(image.dtype, np.unsignedinteger) else shrunk


def _three_channels(image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    layers = image[..., None] if image.ndim == 2 else image
    if layers.shape[2] == 2:
        return np.concatenate([layers, np.zeros_like(layers[..., :1])], axis=2)
    return np.repeat(layers, 3, axis=2) if layers.shape[2] == 1 else np.ascontiguousarray(layers[..., :3])
