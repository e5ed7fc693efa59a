"""How a model wants its images: the resize, crop and statistics of its own image processor, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from domainclip.errors import ImageError, ModelLoadError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

LONGEST = 128
"""Of an image longer than this many times its width, only the middle is resized: the central square lies far inside
it, and a hair of 1 × 100,000,000 pixels would otherwise be blown up to terabytes."""

_OVERSHOOT = 26.0
"""Levels by which a bicubic resize of fractions may leave 0…255."""

_TORCH_MODES = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}


@dataclass(frozen=True)
class ImageSpec:
    """Resize, crop and normalise as ``transformers``' image processor of the model does, sizes in pixels.

    ``resize``: ``shortest`` brings the shorter side to ``size`` and keeps the proportions, ``squash`` makes a
    ``size`` × ``size`` square of any image. ``crop``: resolution of the central square cut out afterwards, or None.
    """

    size: int = 224
    crop: int | None = 224
    resize: Literal["shortest", "squash"] = "shortest"
    resample: int = Image.Resampling.BICUBIC
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @classmethod
    def from_processor(cls, processor: Any) -> ImageSpec:
        """Read a ``transformers`` image processor.

        Args:
            processor: The processor, or anything with its attributes.

        Returns:
            The treatment it gives images.

        Raises:
            ModelLoadError: Its treatment cannot be expressed here: no square, or pixels not scaled by 1/255.
        """
        size = {key: value for key, value in dict(processor.size).items() if value is not None}
        if "shortest_edge" not in size and size.get("height", 0) != size.get("width"):
            raise ModelLoadError(
                f"The model's image processor makes images of size {size}: only a square ('height' and 'width' "
                "equal) or 'shortest_edge' is supported"
            )
        factor = float(getattr(processor, "rescale_factor", None) or 1 / 255)
        if not getattr(processor, "do_rescale", True) or abs(factor * 255 - 1) > 1e-3:
            raise ModelLoadError(
                "The model's image processor does not scale pixels by 1/255 before normalising: not supported"
            )
        crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
        shortest = size.get("shortest_edge")
        resolution = int(shortest or size["height"])
        cut = int(crop.get("height") or crop["shortest_edge"]) if crop else None
        if shortest and cut is None:
            cut = resolution  # batches need squares
        normalise = getattr(processor, "do_normalize", True)
        mean = tuple(float(v) for v in processor.image_mean) if normalise else (0.0, 0.0, 0.0)
        std = tuple(float(v) for v in processor.image_std) if normalise else (1.0, 1.0, 1.0)
        return cls(
            size=resolution,
            crop=cut,
            resize="shortest" if shortest else "squash",
            resample=int(getattr(processor, "resample", Image.Resampling.BICUBIC)),
            mean=mean,  # type: ignore[arg-type]
            std=std,  # type: ignore[arg-type]
        )

    @property
    def resolution(self) -> int:
        """Resolution of the image the model receives."""
        return self.crop or self.size

    def at(self, resolution: int) -> ImageSpec:
        """The same treatment for another resolution.

        Args:
            resolution: Of the image that the model receives, in pixels.

        Returns:
            A spec in which the margin that a crop removes keeps its proportion.
        """
        if resolution == self.resolution:
            return self
        if self.crop is None:
            return replace(self, size=resolution)
        return replace(self, size=round(self.size * resolution / self.crop), crop=resolution)

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """The shape after the resize, before the crop. Rounds as ``transformers`` does: the longer side is cut.

        Args:
            height: Before it, in pixels.
            width: Before it, in pixels.

        Returns:
            Height and width in pixels.
        """
        if self.resize == "squash":
            return self.size, self.size
        if height <= width:
            return self.size, int(self.size * width / height)
        return int(self.size * height / width), self.size

    def trim(self, image: np.ndarray) -> np.ndarray:
        """The middle of an image more than ``LONGEST`` times as long as wide.

        Args:
            image: ``[height, width, …]``.

        Returns:
            A view of the middle; any other image, and any that is squashed, itself.
        """
        height, width = image.shape[:2]
        keep = LONGEST * min(height, width)
        if self.resize == "squash" or max(height, width) <= keep:
            return image
        keep += (max(height, width) - keep) % 2  # the centre stays the centre
        start = (max(height, width) - keep) // 2
        return image[start : start + keep] if height > width else image[:, start : start + keep]

    def apply(self, image: np.ndarray) -> UInt8[Tensor, "3 size size"]:
        """Resize and crop an image.

        Args:
            image: uint8 ``[height, width, 3]``.

        Returns:
            uint8 ``[3, size, size]``, within 1/255 of the model's own processor (rare values within 2/255, since each
            of the two passes rounds).
        """
        image = self.trim(image)
        height, width = self.resized_shape(*image.shape[:2])
        resized = resize(image, height, width, self.resample)
        return center_crop(resized, self.crop) if self.crop else resized

    def normalise(self, pixels: UInt8[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 h w"]:
        """Bytes to the model's numbers, in one pass on whatever device the bytes are.

        Args:
            pixels: uint8 ``[batch, 3, h, w]``.

        Returns:
            float32 of the same shape: (pixels / 255 − mean) / std.
        """
        scale, shift = _scale_and_shift(tuple(self.mean), tuple(self.std), pixels.device)
        # Into the copy itself: the kernel zeroes every page of a second buffer, which took longer than the sum.
        values = pixels.to(torch.float32, copy=True)
        return torch.addcmul(shift, values, scale, out=values)

    def bytes_of(self, values: Float[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
        """The way back from ``normalise``, for numbers that a transform of the user's own has made.

        Args:
            values: One image ``[3, h, w]``, normalised by the model's mean and deviation.

        Returns:
            uint8 of the same shape: exactly the bytes that were normalised, where there were any.

        Raises:
            ImageError: The numbers cannot have been normalised like that.
        """
        scale, shift = _scale_and_shift(tuple(self.mean), tuple(self.std), values.device)
        levels = (values.float() - shift) / scale
        low, high = float(levels.min()), float(levels.max())
        if not (low > -_OVERSHOOT and high < 255 + _OVERSHOOT):
            raise ImageError(
                f"The image has numbers from {float(values.min()):.3g} to {float(values.max()):.3g}, which no image "
                f"has after it is normalised with the model's mean {self.mean} and deviation {self.std}: normalise "
                "with those, or give the image as a picture and leave its preparation to the package"
            )
        return levels.round().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=32)
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Made once: a constant that is copied to an accelerator for every batch waits for all the work queued there."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(3, 1, 1)
    return scale, shift


def resize(image: np.ndarray, height: int, width: int, resample: int) -> UInt8[Tensor, "3 h w"]:
    """Antialiased resize, on torch where it equals Pillow within 1/255 and is faster.

    Rows are resized before columns, as Pillow did when CLIP was trained. Pillow 13 begins with the columns where the
    height shrinks much more than the width; that differs where rounding in between clips (noise, hard edges).

    Args:
        image: uint8 ``[h, w, 3]``.
        height: Wanted, in pixels.
        width: Wanted, in pixels.
        resample: A value of Pillow's ``Image.Resampling``.

    Returns:
        uint8 ``[3, height, width]``; one that has this shape already may share its memory.
    """
    if image.shape[:2] == (height, width):
        return torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    mode = _TORCH_MODES.get(Image.Resampling(resample))
    if mode is None:
        shrunk = Image.fromarray(image).resize((width, height), Image.Resampling(resample))
        return torch.from_numpy(np.array(shrunk)).permute(2, 0, 1)
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None]
    return F.interpolate(pixels, size=(height, width), mode=mode, antialias=True, align_corners=False)[0]


def center_crop(pixels: UInt8[Tensor, "3 h w"], size: int) -> UInt8[Tensor, "3 size size"]:
    """The central square; a side shorter than the square is padded with black, as ``transformers`` pads.

    Args:
        pixels: uint8 ``[3, h, w]``.
        size: Of the square, in pixels.

    Returns:
        uint8 ``[3, size, size]``.
    """
    height, width = pixels.shape[1:]
    if height < size or width < size:
        top, left = max(0, -(-(size - height) // 2)), max(0, -(-(size - width) // 2))
        bottom, right = max(0, size - height - top), max(0, size - width - left)
        pixels = F.pad(pixels, (left, right, top, bottom))
        height, width = pixels.shape[1:]
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[:, top : top + size, left : left + size]
