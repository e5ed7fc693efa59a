"""The picture tower's side of a step: bytes to embeddings, at one size or at several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from domainclip.data.images.image_spec import ImageSpec


def view_sides(encoder: Any, native: int, scales: Sequence[float]) -> list[int]:
    """Sides in pixels for ``scales`` of the native one, each a multiple of what the tower's patches or strides take.

    Raises ``ConfigurationError`` for a tower that takes one size only.
    """
    if all(scale == 1 for scale in scales):
        return [native] * len(scales)
    step = encoder.resolution_step
    return [native if scale == 1 else max(step, round(native * scale / step) * step) for scale in scales]


class PictureViews:
    """``pixels`` uint8 ``[B, 3, R, R]`` to embeddings ``[B, D]``; with ``scales`` (of an objective that reads several
    sizes) to ``[B, K, D]``, one for each size, made on the device."""

    def __init__(self, encoder: Any, spec: ImageSpec, scales: Sequence[float] | None) -> None:
        self.encoder, self.spec, self.scales = encoder, spec, scales

    def __call__(self, pixels: UInt8[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch ..."]:
        pictures = self.spec.normalise(pixels).to(self.encoder.dtype)
        if self.scales is None:
            return self.encoder.encode_image(pictures)
        sides = view_sides(self.encoder, pictures.shape[-1], self.scales)
        return torch.stack([self.encoder.encode_image(_resized(pictures, side)) for side in sides], dim=1)


def _resized(pictures: Tensor, side: int) -> Tensor:
    if pictures.shape[-1] == side:
        return pictures
    return F.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True)
