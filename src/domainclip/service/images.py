"""Images of requests: from base64 to what the model is shown, within limits."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor

from domainclip.data.images.preparation import Preparation
from domainclip.data.images.reader import ImageBytes
from domainclip.errors import DataError, ImageError


@dataclass(frozen=True)
class ImageLimits:
    """What an image may be, in bytes and pixels."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 64_000_000


class ImageInputError(DataError):
    """An image of a request cannot be used; ``code`` says why to programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def image_bytes(given: str, limits: ImageLimits) -> bytes:
    """The file that a request holds as base64 or as a data URI."""
    if len(given) > 4 * limits.max_bytes // 3 + 100:
        raise ImageInputError("image_too_large", f"An image may have {limits.max_bytes:,} bytes")
    try:
        return base64.b64decode(given.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageInputError("invalid_base64", f"This is no base64: {error}") from None


def content_digest(content: bytes) -> bytes:
    """SHA-256 of a file."""
    return hashlib.sha256(content).digest()


def decoded(content: bytes, preparation: Preparation, limits: ImageLimits) -> UInt8[Tensor, "tiles 3 size size"]:
    """What the model is shown of an image."""
    try:
        return preparation.make(preparation.read(ImageBytes(content, "The image"), limits.max_pixels))
    except ImageError as error:
        raise ImageInputError("damaged_image", str(error)) from None
