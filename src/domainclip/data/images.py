"""Reading pictures: every common format to upright 8-bit RGB, safely and fast.

JPEG goes through libjpeg-turbo (simplejpeg) with its accurate transform and smooth chroma upsampling, which gives
the pixels Pillow gives; everything else through Pillow.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from domainclip.errors import PictureError

MAX_PIXELS = 178_956_970
"""Pictures above this are refused before decoding (Pillow's own limit for a decompression bomb: 2 × 1024³ / 4 / 3)."""

_ORIENTATION = 0x0112

_DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, RuntimeError, ArithmeticError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow's decoders raise on damaged bytes (found by damaging pictures of every format at random)."""


@dataclass(frozen=True)
class PictureHeader:
    """What the first bytes of a picture say, without decoding it."""

    width: int
    height: int
    format: str
    mode: str
    frames: int


def _open(path: Path, source: io.BytesIO | Path, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(source)
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{path}: more than {MAX_PIXELS:,} pixels; shrink the picture first") from None
    except UnidentifiedImageError:
        raise PictureError(f"{path}: not a picture, or its first bytes are damaged") from None
    except _DAMAGE as error:
        raise PictureError(f"{path}: cannot be opened ({error})") from None
    pixels = picture.width * picture.height
    if pixels > max_pixels:
        raise PictureError(
            f"{path}: {picture.width}×{picture.height} is {pixels:,} pixels, above max_image_pixels={max_pixels:,}; "
            "shrink the picture first"
        )
    return picture


def picture_header(path: Path, max_pixels: int = MAX_PIXELS) -> PictureHeader:
    """Size, format and mode. Raises ``PictureError`` for a missing file, a non-picture or too many pixels."""
    with _open(path, Path(path), max_pixels) as picture:
        try:
            frames = getattr(picture, "n_frames", 1)
        except _DAMAGE as error:
            raise PictureError(f"{path}: damaged picture ({error})") from None
        return PictureHeader(picture.width, picture.height, picture.format or "", picture.mode, frames)


def to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB: 16-bit grey is scaled to its full range, transparency is laid on white, frame 0 of an animation."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        # Pillow would clip everything above 255 to white.
        values = np.asarray(picture).astype(np.float32)
        scale = 255.0 / 65535.0 if values.max(initial=0) > 255 else 1.0
        return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        values = np.asarray(picture)
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        span = high - low or 1.0
        return Image.fromarray(np.nan_to_num((values - low) / span * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in {"RGBA", "LA", "PA"} or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return picture.convert("RGB")


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture as uint8 ``[height, width, 3]`` RGB, EXIF orientation applied.

    Raises ``PictureError`` for a missing, truncated, oversized or undecodable file.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f"{path}: {error.strerror or error}") from None
    if not data:
        raise PictureError(f"{path}: the file is empty")
    with _open(path, io.BytesIO(data), max_pixels) as picture:
        try:
            orientation = picture.getexif().get(_ORIENTATION, 1)
            if picture.format == "JPEG" and picture.mode in {"RGB", "L"} and orientation in {0, 1}:
                return _decode_jpeg(data, grey=picture.mode == "L")
            picture.seek(0)
            upright = ImageOps.exif_transpose(picture) if orientation not in {0, 1} else picture
            return np.asarray(to_rgb(upright))
        except _DAMAGE as error:
            raise PictureError(f"{path}: damaged picture ({error})") from None


def _decode_jpeg(data: bytes, grey: bool) -> np.ndarray:
    # strict: a truncated file raises instead of giving a half-grey picture.
    try:
        if grey:
            return np.repeat(simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True), 3, axis=2)
        return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except ValueError as error:
        if "extraneous bytes" not in str(error):
            raise
        # Stray bytes between markers, as some cameras write, hurt no pixel; a truncated file Pillow refuses too.
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
