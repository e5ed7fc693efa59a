"""Images as requests carry them: from text to bytes, and from bytes that nobody vouches for to what the model is shown.

The order is what makes it safe: the length of the text is known before it is decoded, the format by its first bytes
before a decoder is chosen, the parts of a file before a decoder reads them one by one, its pixels before they are
decoded.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from domainclip.data.images.dicom import is_dicom
from domainclip.data.images.kinds import START, is_never_read, kind_of
from domainclip.data.images.preparation import Preparation
from domainclip.data.images.reader import MAX_PIXELS, ImageBytes, ImageHeader, image_header
from domainclip.errors import ConfigurationError, DataError, ImageError, ImageTooLargeError, MissingExtraError
from domainclip.service.image_parts import refuse_large_fragments, refuse_many_parts

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF", "DICOM")
"""What is taken from a request, in Pillow's words; the other formats that Pillow reads are rare, and some of their
readers run other programs."""

ImageErrorCode = Literal[
    "invalid_base64",
    "image_too_large",
    "too_many_pixels",
    "not_an_image",
    "damaged_image",
    "unsupported_format",
    "url_not_allowed",
    "url_failed",
]

_NAME = "The image"
_MIME_LINE = 78 / 76
"""MIME ends each line of 76 characters by two more (RFC 2045, 6.8)."""
_HEADER = 256
"""Characters before the comma of a data URI, at most."""
_TO_STANDARD, _BLANK = bytes.maketrans(b"-_", b"+/"), b" \t\r\n\f\v"


class ImageInputError(DataError):
    """An image of a request cannot be used. ``code`` is for programs."""

    def __init__(self, code: ImageErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ImageErrorCode = code


@dataclass(frozen=True)
class ImageLimits:
    """What one image of a request may be.

    Args:
        max_bytes: Of its file.
        max_pixels: Width times height; also of all pages together, where a model's preparation takes their mean.

    Raises:
        ConfigurationError: A limit is below 1, or ``max_pixels`` above what is ever decoded.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or not 1 <= self.max_pixels <= MAX_PIXELS:
            raise ConfigurationError(
                f"The limits of an image are {self.max_bytes:,} bytes and {self.max_pixels:,} pixels: give at least 1 "
                f"byte, and from 1 to {MAX_PIXELS:,} pixels"
            )


def image_bytes(given: str, limits: ImageLimits) -> bytes:
    """The file that a text stands for.

    Args:
        given: Base64, of the standard or the URL-safe alphabet, with or without padding and line breaks; or a data URI
            with it (RFC 2397), whose media type is not heeded.
        limits: ``max_bytes`` is heeded, before anything is decoded.

    Returns:
        The bytes, one at least.

    Raises:
        ImageInputError: ``invalid_base64`` or ``image_too_large``.
    """
    if len(given) > (limits.max_bytes + 2) / 3 * 4 * _MIME_LINE + _HEADER:
        raise _too_large(limits)
    text = given.lstrip()
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise ImageInputError(
                "invalid_base64", f"The data URI {header[:60]!r} holds no base64: write data:image/png;base64,…"
            )
    elif text[:8].lower().startswith(("http://", "https:/")):
        raise ImageInputError("invalid_base64", 'The image is an address: give it as {"url": "https://…"}')
    try:
        digits = text.encode("ascii").translate(_TO_STANDARD, _BLANK)
        bare = digits.rstrip(b"=")
        padding = digits[len(bare) :]
        if len(bare) * 3 // 4 > limits.max_bytes:
            raise _too_large(limits)
        content = base64.b64decode(bare + (padding or b"=" * (-len(bare) % 4)), validate=True)
    except UnicodeEncodeError:
        raise ImageInputError(
            "invalid_base64", "The image is no base64: it has characters that are not ASCII"
        ) from None
    except binascii.Error as error:
        raise ImageInputError("invalid_base64", f"The image is no base64: {error}") from None
    if not content:
        raise ImageInputError("invalid_base64", "The image is empty: give the bytes of a file, as base64")
    return content


def _too_large(limits: ImageLimits) -> ImageInputError:
    return ImageInputError(
        "image_too_large", f"The image has more than the {limits.max_bytes:,} bytes that are taken: shrink it"
    )


def content_digest(content: bytes) -> str:
    """What identifies a file's content, whatever it is called and whoever sends it.

    Args:
        content: The file.

    Returns:
        Its SHA-256, 64 hexadecimal digits.
    """
    return hashlib.sha256(content).hexdigest()


def check_header(content: bytes, limits: ImageLimits) -> ImageHeader:
    """Refuse what is no image, or too large a one, before anything is decoded.

    Args:
        content: The file.
        limits: What it may be.

    Returns:
        Its header. Frames of an animation are not counted.

    Raises:
        ImageInputError: ``image_too_large``, ``too_many_pixels``, ``not_an_image``, ``unsupported_format`` (a file of
            a known kind that is not taken) or ``damaged_image``.
    """
    if len(content) > limits.max_bytes:
        raise _too_large(limits)
    source = _source(content)
    kind = source.formats[0] if source.formats else "DICOM"
    try:
        refuse_many_parts(content, kind, _NAME)
        header = image_header(source, limits.max_pixels, count_frames=False)
        if kind == "DICOM":
            refuse_large_fragments(content, header.width * header.height, limits.max_pixels, _NAME)
        return header
    except (ImageError, MissingExtraError) as error:
        raise _input_error(error) from None


def decoded(content: bytes, preparation: Preparation, limits: ImageLimits) -> UInt8[Tensor, "tiles 3 size size"]:
    """What the model is shown of an image.

    Args:
        content: The file.
        preparation: The engine's (``EmbeddingEngine.preparation``).
        limits: What the file may be.

    Returns:
        One view, or one of each tile, exactly as ``EmbeddingEngine.pixels`` gives them.

    Raises:
        ImageInputError: As for ``check_header``, whose checks come first.
    """
    header = check_header(content, limits)
    source = _source(content)
    try:
        if preparation.pipeline.settings.page == "mean" and header.format in {"TIFF", "DICOM"}:
            frames = image_header(source, limits.max_pixels).frames
            if frames * header.width * header.height > limits.max_pixels:
                raise ImageTooLargeError(
                    f"{_NAME} has {frames:,} pages of {header.width}×{header.height}, above {limits.max_pixels:,} "
                    "pixels in all, and the model is shown their mean: send fewer"
                )
        return preparation.make(preparation.read(source, limits.max_pixels))
    except (ImageError, MissingExtraError) as error:
        raise _input_error(error) from None


def _input_error(error: Exception) -> ImageInputError:
    if isinstance(error, MissingExtraError):
        return ImageInputError("unsupported_format", str(error))
    return ImageInputError("too_many_pixels" if isinstance(error, ImageTooLargeError) else "damaged_image", str(error))


def _source(content: bytes) -> ImageBytes:
    """The content for the reader, with the one decoder that may open it; DICOM needs none of Pillow's."""
    start = content[:START]
    if is_dicom(start):
        return ImageBytes(content, _NAME, ())
    found = next((name for name in FORMATS if _opens(name, start)), None)
    kind = kind_of(start, Path())
    if found is not None and not is_never_read(kind):
        return ImageBytes(content, _NAME, (found,))
    taken = ", ".join(FORMATS).replace("HEIF", "HEIC")
    if kind is not None:
        raise ImageInputError("unsupported_format", f"{_NAME} is not taken: this is {kind.name}; {kind.advice}")
    other = next((name for name in Image.ID if _opens(name, start)), None)
    if other is not None:
        raise ImageInputError(
            "unsupported_format", f"{_NAME} begins as one in the format {other}, which is not taken: send {taken}"
        )
    raise ImageInputError("not_an_image", f"{_NAME} is in no known format: send one of {taken}")


def _opens(name: str, start: bytes) -> bool:
    """Whether a file is one for a decoder of Pillow's, by its first bytes alone."""
    Image.init()
    accept = Image.OPEN[name][1] if name in Image.OPEN else None
    try:
        return accept is not None and accept(start[:16]) is True
    except (struct.error, IndexError):  # fewer bytes than it looks at
        return False
