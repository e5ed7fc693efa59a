"""Reading images from disk, for encoding and for showing them."""

from __future__ import annotations

import struct
from pathlib import Path

from PIL import Image, ImageOps

from domainclip.errors import ImageError

ImageLike = Image.Image | Path | str

_DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise on damaged bytes and on images above its size limit."""


def load_image(image: ImageLike) -> Image.Image:
    """The image, decoded and turned upright as its EXIF data says, in its own mode; an opened one as it is.

    The mode is left alone because what becomes of 16-bit or transparent images is the encoder's business.
    Raises ``ImageError`` for a file that is missing, damaged or too large.
    """
    if isinstance(image, Image.Image):
        return image
    try:
        with Image.open(image) as opened:
            opened.load()
            return ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise ImageError(f"{image}: no such file") from None
    except _DECODE_ERRORS as error:
        raise ImageError(f"{image}: cannot be read as an image ({error})") from error
