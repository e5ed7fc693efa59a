"""From an image to what the model takes, with or without augmentation."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from domainclip.config import DataSettings
from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.images.given import GivenImage, image_list, is_one_image
from domainclip.data.images.image_spec import ImageSpec, resize
from domainclip.data.images.pipeline import DomainImagePipeline
from domainclip.data.images.preparation import Preparation, model_views
from domainclip.data.images.reader import MAX_PIXELS, ImageBytes, array_of
from domainclip.data.images.views import random_view
from domainclip.domains.recipes import image_steps
from domainclip.errors import DataError, InputTypeError

_ASPECT = (3 / 4, 4 / 3)
"""Range of a random crop's proportions (Szegedy et al. 2015, and every CLIP recipe since)."""


class ImageTransform:
    """Resize, crop and normalise as the model's own processor does; with ``augment``, a random view instead.

    The work is in two steps, so that the first can be kept across epochs: ``base`` is the part without chance
    (decode and resize; with ``augment`` somewhat larger than needed), ``finish`` draws the random view.
    Augmentation: a crop of at least ``crop_scale`` of the area, flips and quarter turns where the recipe allows
    them, a jitter of brightness and contrast, and what the domain's ``ImagePreprocessing`` adds. Its steps without
    chance are ``base``'s first; where it cuts large images into tiles, a random view is one of a random tile.

    ``largest_resolution``: the largest resolution in pixels that ``finish`` will be asked for (default: the transform's
    own), so that ``base`` keeps enough of the image for it. ``steps``: those of the domain, where it has been read
    already (default: those of the domain that ``config`` names).
    """

    def __init__(
        self,
        config: DataSettings,
        augment: bool = False,
        spec: ImageSpec | None = None,
        largest_resolution: int | None = None,
        steps: ImagePreprocessing | None = None,
    ) -> None:
        spec = spec or ImageSpec()
        # An ImageTransform made from a bare config has no model to ask: the config's resolution holds.
        self.spec = spec.at(config.image_resolution)
        self.config = config
        self.augment = augment
        self.largest_resolution = max(self.spec.resolution, largest_resolution or 0)
        self.steps = steps or image_steps(config)
        self.pipeline = DomainImagePipeline(self.steps)

    @property
    def resolution(self) -> int:
        return self.spec.resolution

    def preparation(self) -> Preparation:
        """``base`` as an ``ImageStore`` keeps it.

        Returns:
            A preparation that makes uint8 ``[1, 3, h, w]``.
        """
        spec = self.spec.at(self.largest_resolution)
        if type(self) is ImageTransform and not self.augment and not self.pipeline.tiled:
            return model_views(self.pipeline, spec)
        # A subclass may make anything of an image.
        kind = (self.augment, self.config.crop_scale) if type(self) is ImageTransform else (id(self),)
        key = (*kind, self.steps.model_dump_json(), spec)
        return Preparation(key, self.pipeline, self.target, self._base_of)

    def _base_of(self, image: np.ndarray) -> UInt8[Tensor, "1 3 h w"]:
        # A copy: it may be a view of the decoded image, which would be held with it.
        return self.base(image)[None].clone(memory_format=torch.contiguous_format)

    def read(self, path: Path | ImageBytes, max_pixels: int) -> np.ndarray:
        """Read a file as ``base`` wants it.

        Args:
            path: The file.
            max_pixels: Larger images are refused.

        Returns:
            The image at its own depth, ``[h, w]`` or ``[h, w, channels]``.

        Raises:
            ImageError: The file cannot be read, or has more than ``max_pixels`` pixels.
            MissingExtraError: The library for its format is missing.
        """
        return self.pipeline.read(path, max_pixels, self.target)

    @property
    def target(self) -> int:
        """The shorter side in pixels that an image (a tile) keeps for this transform; see ``DomainImagePipeline``."""
        return 2 * self.largest_resolution

    def base(self, image: np.ndarray) -> UInt8[Tensor, "3 h w"]:
        """The part without chance.

        Args:
            image: An image of any depth, as ``data.images.read_array`` gives it.

        Returns:
            uint8 ``[3, h, w]``: without ``augment`` the square for ``largest_resolution``; with it, with a margin for
            crops, or whole where it is to be tiled.

        Raises:
            ImageError: The array is no image.
            MissingExtraError: The library of one of the domain's steps is missing.
        """
        large = self.pipeline.tiles(image)
        image = self.pipeline.apply(image, self.target)
        if not self.augment:
            return self.spec.at(self.largest_resolution).apply(image)
        if self.pipeline.tiled:
            return self._tiled_base(image, large)
        return self._with_margin(image)

    @property
    def _margin_fits_a_tile(self) -> bool:
        tile = self.pipeline.tile_pixels(self.target)
        return (
            self.spec.resize == "squash"
            and math.ceil(self.largest_resolution / math.sqrt(self.config.crop_scale)) <= tile
        )

    def _tiled_base(self, image: np.ndarray, large: bool) -> UInt8[Tensor, "3 h w"]:
        """As large as it is, tiles being cut by ``finish``, which knows an image to be cut by its being longer than a
        tile: one that is not to be cut must not be."""
        if not large and self._margin_fits_a_tile:
            return self._with_margin(image)
        height, width = image.shape[:2]
        factor = 1.0 if large else min(1.0, self.pipeline.tile_pixels(self.target) / max(height, width))
        shape = max(1, int(height * factor)), max(1, int(width * factor))
        return resize(image, *shape, self.spec.resample)

    def _with_margin(self, image: np.ndarray) -> UInt8[Tensor, "3 h w"]:
        resolution = self.largest_resolution
        image = self.spec.trim(image)
        # Large enough that the smallest crop is not enlarged, never larger than the original.
        margin = 1 / math.sqrt(self.config.crop_scale)
        larger = self.spec.at(min(math.ceil(resolution * margin), max(resolution, min(image.shape[:2]))))
        return resize(image, *larger.resized_shape(*image.shape[:2]), larger.resample)

    def finish(
        self, pixels: UInt8[Tensor, "3 h w"], rng: random.Random, resolution: int | None = None, strength: float = 1.0
    ) -> UInt8[Tensor, "3 size size"]:
        """The image to train on, from what ``base`` made.

        Which numbers are drawn depends on neither resolution nor strength: a row's flips, turns and the place of its
        crop are the same at every resolution.

        Args:
            pixels: uint8 ``[3, h, w]`` from ``base``.
            rng: Where the random numbers come from; nothing is drawn without ``augment``.
            resolution: In pixels, at most ``largest_resolution``; the transform's own, if left out. Without ``augment``
                another resolution than the base's is a second resize, of the base, which may lie a pixel beside what
                ``spec.at(resolution)`` crops.
            strength: In (0, 1]; scales how much the crop takes away and how far the jitter goes.

        Returns:
            uint8 ``[3, resolution, resolution]``.

        Raises:
            MissingExtraError: The domain asks for stain jitter and scikit-image is missing.
        """
        resolution = resolution or self.resolution
        if not self.augment:
            if pixels.shape[-1] == resolution:
                return pixels
            return resize(pixels.permute(1, 2, 0).numpy(), resolution, resolution, self.spec.resample)
        config = self.config
        if self.pipeline.tiled:
            pixels = self._random_tile(pixels, rng)
        top, left, height, width = self._crop_box(pixels.shape[1], pixels.shape[2], rng, strength)
        region = pixels[:, top : top + height, left : left + width].permute(1, 2, 0).numpy()
        view = resize(region, resolution, resolution, self.spec.resample)
        if config.horizontal_flip and rng.random() < 0.5:
            view = view.flip(2)
        if config.vertical_flip and rng.random() < 0.5:
            view = view.flip(1)
        if config.rotate90:
            view = view.rot90(rng.randrange(4), (1, 2))
        if config.color_jitter:
            view = self._jitter(view, rng, config.color_jitter * strength)
        return random_view(view, self.steps, rng, strength)

    def _random_tile(self, pixels: UInt8[Tensor, "3 h w"], rng: random.Random) -> UInt8[Tensor, "3 h w"]:
        boxes = self.pipeline.boxes(pixels.shape[1], pixels.shape[2], self.target)
        if len(boxes) == 1 and self._margin_fits_a_tile:
            return pixels  # as every image where there are no tiles, with the same draws to come
        top, left, height, width = boxes[rng.randrange(len(boxes))]
        return self._with_margin(pixels[:, top : top + height, left : left + width].permute(1, 2, 0).numpy())

    def _crop_box(
        self, height: int, width: int, rng: random.Random, strength: float = 1.0
    ) -> tuple[int, int, int, int]:
        """Top, left, height and width. At less than full strength the box drawn at full strength is grown.

        Its fraction a of the area becomes 1 − (1 − a)·strength, which is a draw with ``crop_scale`` moved towards 1
        just so; its place keeps its proportion of the room there is.
        """
        box = self._full_crop_box(height, width, rng)
        if strength == 1:
            return box
        top, left, small_height, small_width = box
        whole = self._croppable(height, width)
        area = whole * (1 - (1 - min(1.0, small_height * small_width / whole)) * strength)
        grown_height = min(height, round(math.sqrt(area * small_height / small_width)))
        grown_width = min(width, round(area / grown_height))
        # Where the width is at the edge the height makes up for it.
        grown_height = max(small_height, min(height, round(area / grown_width)))
        return (
            _same_place(top, height - small_height, height - grown_height),
            _same_place(left, width - small_width, width - grown_width),
            grown_height,
            grown_width,
        )

    def _croppable(self, height: int, width: int) -> float:
        # A squashed image has lost its proportions already: its crops keep the square's.
        return height * width if self.spec.resize == "squash" else min(height, width) ** 2 * 1.0

    def _full_crop_box(self, height: int, width: int, rng: random.Random) -> tuple[int, int, int, int]:
        limit = self._croppable(height, width)
        for _ in range(10):
            area = limit * rng.uniform(self.config.crop_scale, 1.0)
            aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
            crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                return (
                    rng.randint(0, height - crop_height),
                    rng.randint(0, width - crop_width),
                    crop_height,
                    crop_width,
                )
        edge = min(height, width)
        return (height - edge) // 2, (width - edge) // 2, edge, edge

    def _jitter(self, view: UInt8[Tensor, "3 h w"], rng: random.Random, strength: float) -> UInt8[Tensor, "3 h w"]:
        contrast = 1 + rng.uniform(-strength, strength)
        brightness = 255 * rng.uniform(-strength, strength)
        values = view.float()
        mean = float(values.mean())
        return values.mul_(contrast).add_(mean * (1 - contrast) + brightness).clamp_(0, 255).round_().byte()

    def __call__(self, image: GivenImage, rng: random.Random | None = None) -> Float[Tensor, "3 size size"]:
        if not is_one_image(image):
            raise InputTypeError(f"One image at a time is transformed, not a {type(image).__name__}")
        [given] = image_list(image)
        if isinstance(given, Image.Image):
            given = array_of(given)
        if not isinstance(given, np.ndarray):
            source = given if isinstance(given, ImageBytes) else Path(given)
            given = self.read(source, MAX_PIXELS)
        pixels = self.finish(self.base(given), rng or random.Random())
        return self.spec.normalise(pixels[None])[0]


def _same_place(offset: int, room: int, new_room: int) -> int:
    return round(offset / room * new_room) if room else 0


class MultiResolutionImageTransform:
    """One ``ImageTransform`` per resolution, chosen per call. A call raises ``DataError`` for a resolution not listed.

    Args:
        config: As for ``ImageTransform``.
        resolutions: In pixels, one at least; the first is a call's, if it names none.
        augment: As for ``ImageTransform``.
        spec: As for ``ImageTransform``.

    Raises:
        DataError: There are no resolutions.
    """

    def __init__(
        self,
        config: DataSettings,
        resolutions: Sequence[int] = (224, 288, 384),
        augment: bool = False,
        spec: ImageSpec | None = None,
    ) -> None:
        if not resolutions:
            raise DataError("Give at least one resolution")
        spec = spec or ImageSpec()
        self.resolutions = list(resolutions)
        self._transforms = {
            resolution: ImageTransform(
                config.model_copy(update={"image_resolution": resolution}), augment, spec.at(resolution)
            )
            for resolution in self.resolutions
        }

    def __call__(
        self, image: GivenImage, resolution: int | None = None, rng: random.Random | None = None
    ) -> Float[Tensor, "3 size size"]:
        resolution = self.resolutions[0] if resolution is None else resolution
        if resolution not in self._transforms:
            raise DataError(f"Resolution {resolution} is not one of {self.resolutions}")
        return self._transforms[resolution](image, rng)


def view_rng(seed: int, epoch: int, index: int) -> random.Random:
    """The random numbers of one row in one epoch: the same in any worker, and after any resume.

    Args:
        seed: The run's seed.
        epoch: The epoch, from 0.
        index: The row.

    Returns:
        A generator of its own, at its start.
    """
    return random.Random(f"{seed}/{epoch}/{index}")
