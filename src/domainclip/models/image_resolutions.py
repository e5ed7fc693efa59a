"""Which resolutions a tower takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from domainclip.resolve.resolution import ResolutionRule

if TYPE_CHECKING:
    from domainclip.models.dual_encoder import DualEncoder

CONVOLUTIONAL_STEP = 32
"""The strides of every common convolutional backbone multiply to it: of a smaller image no cell is left."""


def resolution_rule(encoder: DualEncoder) -> ResolutionRule:
    """Multiples of the patch for a tower whose position embeddings can be resized. Another tower is tried at a larger
    size: one that takes it takes any (multiples of its patch, where it has patches) from ``CONVOLUTIONAL_STEP`` on,
    one that does not takes its native resolution only.
    """
    if encoder.positions is not None:
        multiple = math.lcm(*encoder.positions.patch)
        return ResolutionRule(encoder.positions.size[0], multiple, smallest=multiple)
    native = encoder.native_resolution
    patch = getattr(encoder.model.vision_model.config, "patch_size", None)
    multiple = patch if isinstance(patch, int) else 1
    takes_others = _takes(encoder, native + math.lcm(multiple, CONVOLUTIONAL_STEP))
    return ResolutionRule(native, multiple if takes_others else None, CONVOLUTIONAL_STEP)


@torch.no_grad()
def _takes(encoder: DualEncoder, resolution: int) -> bool:
    """Try one black image."""
    training = encoder.training
    encoder.eval()  # batch statistics stay as they are
    scale = encoder.logit_scale
    try:
        image = torch.zeros(1, 3, resolution, resolution, dtype=scale.dtype, device=scale.device)
        encoder.model.get_image_features(pixel_values=image)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    finally:
        encoder.train(training)
    return True
