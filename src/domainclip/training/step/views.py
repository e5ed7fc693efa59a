"""The image tower's side of a step: bytes to embeddings, at one size or at several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from domainclip.data.images.image_spec import ImageSpec
from domainclip.models.dual_encoder import DualEncoder


def view_resolutions(encoder: DualEncoder, native: int, scales: Sequence[float]) -> list[int]:
    """Resolutions for the views of an objective that reads several sizes.

    Args:
        encoder: In training.
        native: Resolution in pixels of the images.
        scales: Of each view.

    Returns:
        Pixels, each a multiple of what the tower's patches or strides take.

    Raises:
        ConfigurationError: The tower takes one size only.
    """
    if all(scale == 1 for scale in scales):
        return [native] * len(scales)
    step = encoder.resolution_step
    return [native if scale == 1 else max(step, round(native * scale / step) * step) for scale in scales]


class ImageViews:
    """Bytes to embeddings.

    Args:
        encoder: Whose image tower it is.
        spec: How pixels are normalised.
        scales: Of an objective that reads several sizes, which are made on the device; None for one.
    """

    def __init__(self, encoder: DualEncoder, spec: ImageSpec, scales: Sequence[float] | None) -> None:
        self.encoder, self.spec, self.scales = encoder, spec, scales

    def __call__(self, pixels: UInt8[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch ..."]:
        """Embed images.

        Args:
            pixels: uint8 ``[B, 3, R, R]``.

        Returns:
            ``[B, D]``, or with several sizes ``[B, K, D]``.
        """
        images = self.spec.normalise(pixels).to(self.encoder.dtype)
        if self.scales is None:
            return self.encoder.encode_image(images)
        resolutions = view_resolutions(self.encoder, images.shape[-1], self.scales)
        return torch.stack(
            [self.encoder.encode_image(_resized(images, resolution)) for resolution in resolutions], dim=1
        )


def _resized(images: Tensor, resolution: int) -> Tensor:
    if images.shape[-1] == resolution:
        return images
    return F.interpolate(images, size=(resolution, resolution), mode="bilinear", antialias=True)
