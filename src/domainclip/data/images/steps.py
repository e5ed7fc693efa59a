"""The steps of the pipeline, each on float32 ``[h, w, c]`` in [0, 1] with c = 1 (grey) or 3 (RGB)."""

from __future__ import annotations

import math
import warnings

import numpy as np
from jaxtyping import Float32
from PIL import Image
from scipy import ndimage

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.images.deep import bits_used
from domainclip.errors import ImageError, MissingExtraError

Levels = Float32[np.ndarray, "h w c"]

_SAMPLE = 2**20
"""Values that percentiles are taken of at most, evenly spaced: their error is far below a grey level."""
_BACKGROUND_SIZE = 256
"""The background of an image is smooth by definition: it is found on a copy of this size, in pixels."""
_DARKEST_BACKGROUND = 0.02
"""A background below this fraction of white is taken for this: dividing by less would blow up its noise."""
_LARGEST_GAIN = 4.0
"""Of grey-world: an image of one colour is that colour, not a cast."""
_BORDER_SPECKS = 0.02
"""A row or column of border may have this fraction of its pixels beyond the threshold: dust, a burnt-in letter."""


def to_levels(values: np.ndarray, settings: ImagePreprocessing) -> Levels:
    """Grey levels of an image of any depth.

    Bytes are divided by 255. More bits, and fractions, are scaled as ``deep_scaling`` says; of the full range of more
    bits, as many count as the image uses (``bits_used``: cameras of 12 bits fill a sixteenth of 16). Two channels
    become red and green; of more than three the first three are shown.

    Args:
        values: ``[h, w]`` or ``[h, w, channels]``.
        settings: ``deep_scaling``, ``channel_scaling`` and ``percentiles`` are heeded.

    Returns:
        float32 in [0, 1], ``[h, w, 1]`` or ``[h, w, 3]``.

    Raises:
        ImageError: The array has another number of axes, or an empty one.
    """
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or 0 in values.shape:
        raise ImageError(f"An image has rows, columns and channels, not the shape {values.shape}")
    if values.shape[2] == 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=2)
    values = values[..., :3]
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    deep = values.dtype != np.uint8
    policy = settings.deep_scaling if deep else "full_range"
    if settings.channel_scaling:
        policy = "per_channel"
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    if policy == "full_range":
        bounds = [_full_range(values)] * values.shape[2]
    elif policy == "percentiles":
        bounds = [_percentiles(values.reshape(-1), settings.percentiles)] * values.shape[2]
    else:
        bounds = [_percentiles(values[..., c].reshape(-1), settings.percentiles) for c in range(values.shape[2])]
    levels = values.astype(np.float32)
    levels -= np.array([low for low, _ in bounds], dtype=np.float32)
    levels /= np.array([high - low or 1.0 for low, high in bounds], dtype=np.float32)
    return levels.clip(0, 1, out=levels)


def _full_range(values: np.ndarray) -> tuple[float, float]:
    if values.dtype == np.uint8:
        return 0.0, 255.0
    if np.issubdtype(values.dtype, np.unsignedinteger):
        return 0.0, float(2 ** bits_used(values) - 1)
    return float(values.min()), float(values.max())


def _percentiles(values: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    step = max(1, math.ceil(values.size / _SAMPLE))
    low, high = np.percentile(values[::step], percentiles)
    return float(low), float(high)


def crop_border(levels: Levels, settings: ImagePreprocessing) -> Levels:
    """The image without the border that ``crop_border`` names.

    Args:
        levels: In [0, 1], ``[h, w, c]``.
        settings: ``crop_border`` and ``border_threshold`` are heeded.

    Returns:
        The part within; ``levels`` itself where nothing, or next to nothing, would be left, and for ``uniform`` where
        the corners differ: then there is no one border.
    """
    brightness = levels.mean(axis=2)
    threshold = settings.border_threshold
    if settings.crop_border == "dark":
        shows = brightness > threshold
    else:
        side = max(1, min(brightness.shape) // 64)
        ends = slice(None, side), slice(-side, None)
        corners = [float(np.median(brightness[rows, columns])) for rows in ends for columns in ends]
        if max(corners) - min(corners) > threshold:
            return levels
        shows = np.abs(brightness - np.median(corners)) > threshold
    rows = np.flatnonzero(shows.mean(axis=1) > _BORDER_SPECKS)
    columns = np.flatnonzero(shows.mean(axis=0) > _BORDER_SPECKS)
    if not len(rows) or not len(columns):
        return levels
    cropped = levels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return cropped if min(cropped.shape[0] / levels.shape[0], cropped.shape[1] / levels.shape[1]) > 0.1 else levels


def divide_by_background(levels: Levels, scale: float) -> Levels:
    """Even light: each pixel over its surroundings' brightness, the mean brightness kept (flat-field correction with
    the image's own blur for the field).

    Args:
        levels: In [0, 1], ``[h, w, c]``.
        scale: Standard deviation of the blur as a fraction of the shorter side.

    Returns:
        Levels of the same shape, in [0, 1].
    """
    brightness = Image.fromarray(levels.mean(axis=2))
    factor = min(1.0, _BACKGROUND_SIZE / min(brightness.size))
    small_size = (max(1, round(brightness.width * factor)), max(1, round(brightness.height * factor)))
    small = np.asarray(brightness.resize(small_size, Image.Resampling.BOX))
    blurred = ndimage.gaussian_filter(small, scale * min(small.shape), mode="nearest").clip(_DARKEST_BACKGROUND, None)
    background = np.asarray(Image.fromarray(blurred).resize(brightness.size, Image.Resampling.BILINEAR))
    even = levels * (blurred.mean() / background)[..., None]
    return even.clip(0, 1).astype(np.float32)


def grey_world(levels: Levels) -> Levels:
    """Channels scaled to one mean (Buchsbaum 1980: the mean of a scene is grey).

    Args:
        levels: In [0, 1], ``[h, w, c]``.

    Returns:
        Levels of the same shape, in [0, 1]; grey images as they are.
    """
    if levels.shape[2] == 1:
        return levels
    means = levels.mean(axis=(0, 1)).clip(1e-3, None)
    gains = (means.mean() / means).clip(1 / _LARGEST_GAIN, _LARGEST_GAIN)
    return (levels * gains).clip(0, 1).astype(np.float32)


def clahe(levels: Levels, clip_limit: float, tiles: int) -> Levels:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) by scikit-image, of the brightness (V of HSV)
    where there are colours.

    Args:
        levels: In [0, 1], ``[h, w, c]``.
        clip_limit: As scikit-image's ``equalize_adapthist`` takes it: the larger, the more contrast.
        tiles: Tiles along each side.

    Returns:
        Levels of the same shape, in [0, 1]; ``levels`` itself where all are equally bright.

    Raises:
        MissingExtraError: scikit-image is missing.
    """
    try:
        from skimage import exposure
    except ImportError:
        raise MissingExtraError("scikit-image", "domain", "clahe_clip_limit (local contrast)") from None
    height, width = levels.shape[:2]
    kernel = (max(1, math.ceil(height / tiles)), max(1, math.ceil(width / tiles)))
    value = levels.max(axis=2)
    if value.max() == value.min():
        return levels  # nothing to equalise, and scikit-image would divide by the range
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on precision: the result is rounded to bytes
        equalised = exposure.equalize_adapthist(value, kernel_size=kernel, clip_limit=clip_limit).astype(np.float32)
    if levels.shape[2] == 1:
        return equalised[..., None].clip(0, 1)
    # Another V with hue and saturation kept is all channels times V's change, without the copies that HSV would take.
    black = value == 0
    coloured = levels * (equalised / np.where(black, 1, value))[..., None]
    coloured[black] = equalised[black][:, None]
    return coloured.clip(0, 1)
