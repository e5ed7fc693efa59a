"""Reading pictures from disk, for encoding and for showing them."""

from __future__ import annotations

import struct
from pathlib import Path

from PIL import Image, ImageOps

from domainclip.errors import PictureError

Picture = Image.Image | Path | str

_DAMAGE = (
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
"""What Pillow's decoders raise on damaged bytes and on pictures above its size limit."""


def read_picture(picture: Picture) -> Image.Image:
    """The picture, decoded and turned upright as its EXIF data says, in its own mode; an opened one as it is.

    The mode is left alone because what becomes of 16-bit or transparent pictures is the encoder's business.
    Raises ``PictureError`` for a file that is missing, damaged or too large.
    """
    if isinstance(picture, Image.Image):
        return picture
    try:
        with Image.open(picture) as opened:
            opened.load()
            return ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise PictureError(f"{picture}: no such file") from None
    except _DAMAGE as error:
        raise PictureError(f"{picture}: cannot be read as a picture ({error})") from error
