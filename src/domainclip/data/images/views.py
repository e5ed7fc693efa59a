"""The random part of a domain's treatment of images: in training alone, on the view that the model is to see."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.errors import MissingExtraError


def random_view(
    view: UInt8[Tensor, "3 h w"], settings: ImagePreprocessing, rng: random.Random, strength: float = 1.0
) -> UInt8[Tensor, "3 h w"]:
    """Rotation, stain and spectral jitter, as far as ``settings`` asks for them.

    A grey image stays grey, since evaluation shows it so: stain jitter leaves it alone, and spectral jitter has one
    gain for it.

    Args:
        view: uint8 ``[3, h, w]``.
        settings: ``rotation_degrees``, ``stain_jitter`` and ``spectral_jitter`` are heeded.
        rng: Where the random numbers come from; which are drawn does not depend on ``strength``.
        strength: In (0, 1]; scales how far they go.

    Returns:
        uint8 of the same shape.

    Raises:
        MissingExtraError: Stain jitter is asked for and scikit-image is missing.
    """
    if settings.rotation_degrees:
        view = rotated(view, settings.rotation_degrees * strength * rng.uniform(-1, 1))
    if not settings.stain_jitter and not settings.spectral_jitter:
        return view
    grey = torch.equal(view[0], view[1]) and torch.equal(view[1], view[2])
    if settings.stain_jitter:
        draws = [rng.uniform(-1, 1) for _ in range(6)]
        view = view if grey else _stained(view, settings.stain_jitter * strength, draws)
    if settings.spectral_jitter:
        gains = [1 + settings.spectral_jitter * strength * rng.uniform(-1, 1) for _ in range(3)]
        gains = gains[:1] * 3 if grey else gains
        view = (view.float() * torch.tensor(gains).view(3, 1, 1)).clamp_(0, 255).round_().byte()
    return view


def rotated(view: UInt8[Tensor, "3 h w"], degrees: float) -> UInt8[Tensor, "3 h w"]:
    """Turned about the centre, bilinear; the corners are filled by the image's mirror image, since black ones would
    tell the model that it was turned.

    Args:
        view: uint8 ``[3, h, w]``.
        degrees: Counter-clockwise as seen.

    Returns:
        uint8 of the same shape.
    """
    height, width = view.shape[1:]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # From output to input, in units of half the height and half the width; rows point down.
    turn = torch.tensor([[[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]]])
    grid = F.affine_grid(turn, [1, 3, height, width], align_corners=False)
    turned = F.grid_sample(view[None].float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return turned[0].round_().clamp_(0, 255).byte()


def _stained(view: UInt8[Tensor, "3 h w"], strength: float, draws: list[float]) -> UInt8[Tensor, "3 h w"]:
    """Amounts of haematoxylin, eosin and DAB (Ruifrok and Johnston 2001) times 1 ± strength, plus up to a tenth of
    strength (Tellez et al. 2018, "Whole-slide mitosis detection", augment their stains so)."""
    try:
        from skimage import color
    except ImportError:
        raise MissingExtraError("scikit-image", "domain", "stain_jitter") from None
    amounts = color.rgb2hed(view.permute(1, 2, 0).numpy())
    factors = 1 + strength * np.array(draws[:3])
    offsets = 0.1 * strength * np.array(draws[3:])
    rgb = color.hed2rgb(amounts * factors + offsets)
    return torch.from_numpy((rgb.clip(0, 1) * 255).round().astype(np.uint8)).permute(2, 0, 1)
