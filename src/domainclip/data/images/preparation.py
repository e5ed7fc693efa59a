"""What is made of an image before it is kept: the part of its way to the model that has no chance in it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.pipeline import DomainImagePipeline
from domainclip.data.images.reader import ImageBytes


@dataclass(frozen=True)
class Preparation:
    """One form of an image that somebody asks for, and how it is made.

    Args:
        key: Equal for two preparations exactly where they make equal bytes of every image.
        pipeline: The domain's steps, which also say what is read of a file (its page, its window).
        target: The shorter side in pixels that an image keeps at least when a large one is shrunk.
        make: From the image as it was read (any depth) to a uint8 tensor of up to four dimensions, contiguous. It can
            be pickled, so that worker processes can make the same.
    """

    key: Hashable
    pipeline: DomainImagePipeline = field(compare=False)
    target: int = field(compare=False)
    make: Callable[[np.ndarray], Tensor] = field(compare=False)

    def read(self, path: Path | ImageBytes, max_pixels: int) -> np.ndarray:
        """Read and decode a file for ``make``.

        Args:
            path: The file, or its content.
            max_pixels: Larger images are refused.

        Returns:
            The image at its own depth.

        Raises:
            ImageError: The file cannot be read, or has more than ``max_pixels`` pixels.
            MissingExtraError: The library for its format is missing.
        """
        return self.pipeline.read(path, max_pixels, self.target)


def model_views(pipeline: DomainImagePipeline, spec: ImageSpec) -> Preparation:
    """What an evaluation shows a model of an image: one view, or one of each tile.

    Args:
        pipeline: The domain's steps.
        spec: The model's own resize and crop, at the resolution wanted.

    Returns:
        A preparation that makes uint8 ``[tiles, 3, resolution, resolution]``.
    """
    key = ("views", pipeline.settings.model_dump_json(), spec)
    return Preparation(key, pipeline, 2 * spec.resolution, partial(_views, pipeline, spec))


def _views(pipeline: DomainImagePipeline, spec: ImageSpec, image: np.ndarray) -> UInt8[Tensor, "tiles 3 size size"]:
    return torch.stack([spec.apply(view) for view in pipeline.views(image, 2 * spec.resolution)])
