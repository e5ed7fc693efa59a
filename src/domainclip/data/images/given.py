"""Images and texts as a caller in Python gives them: one or many, in whatever form, checked before any work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from domainclip.data.captions.given_texts import GivenTexts as GivenTexts
from domainclip.data.captions.given_texts import check_order, named
from domainclip.data.captions.given_texts import text_list as text_list
from domainclip.data.images.image_file import LONGEST_PATH
from domainclip.data.images.reader import ImageBytes, ImageLike
from domainclip.errors import DataError, ImageError, InputTypeError


@runtime_checkable
class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


GivenImage: TypeAlias = ImageLike | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Tensor
"""A path, an image opened by Pillow, an array ``[h, w]`` or ``[h, w, channels]``, a tensor ``[channels, h, w]`` or
``[h, w]``, the bytes of a file, or a file opened in binary mode."""
GivenImages: TypeAlias = GivenImage | Iterable[GivenImage]
"""One image or any number of them; an array or a tensor of four axes holds one image for each index of the first."""

_FORMS = "a path, a PIL image, an array, a tensor, bytes, or a file opened in binary mode"
_CHANNELS = (1, 3, 4)
_OVERSHOOT = 1.1


def is_one_image(images: object) -> bool:
    """Whether what was given is one image, not several.

    Args:
        images: As for ``image_list``.

    Returns:
        True for each of the forms of an image.
    """
    if isinstance(images, np.ndarray) and images.dtype.kind in "UO":  # paths or images, not numbers
        return False
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, str | os.PathLike | Image.Image | bytes | bytearray | memoryview | _Readable)


def image_list(images: GivenImages) -> list[ImageLike]:
    """One image or many as a list of what the reader takes.

    Args:
        images: One image, or any iterable of images, a generator included.

    Returns:
        The images in order. A path given as text is a ``Path``; numbers are arrays ``[h, w]`` or ``[h, w, channels]``,
        and fractions within 0…1 have become bytes.

    Raises:
        InputTypeError: Something is no image.
        ImageError: An array is no image, or a file object cannot be read.
        DataError: There are no images.
    """
    if is_one_image(images):
        return [_image(images, "The image")]
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise InputTypeError(f"Images are given as one image or a list of them, not as {named(images)}: give {_FORMS}")
    check_order("Images", images)
    if isinstance(images, np.ndarray) and images.dtype.kind in "UO":
        images = images.ravel().tolist()
    found = [_image(image, f"Image {index}") for index, image in enumerate(images)]
    if not found:
        raise DataError("No images given: give at least one")
    return found


def _image(image: object, which: str) -> ImageLike:
    if isinstance(image, str | os.PathLike):
        return _path(os.fspath(image), which)
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor):
        return _checked(_hwc(image, which), which)
    if isinstance(image, np.ndarray):
        return _checked(image, which)
    if isinstance(image, bytes | bytearray | memoryview):
        return ImageBytes(bytes(image), which)
    if isinstance(image, _Readable):
        return _read(image, which)
    raise InputTypeError(f"{which} is {named(image)}, which is no image: give {_FORMS}")


def _path(text: str | bytes, which: str) -> Path:
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if "\0" in text or not text.strip():
        raise ImageError(f"{which} is the path {text!r}, which no file can have")
    if len(text) > LONGEST_PATH:
        raise ImageError(f"{which} is a path of {len(text):,} characters ({text[:60]}…), longer than any system takes")
    if text.lower().startswith(("http://", "https://")):
        raise ImageError(f"{which} is an address ({text:.120}): download it first, and give the file's path")
    return Path(text).expanduser()


def _read(file: _Readable, which: str) -> ImageBytes:
    name = getattr(file, "name", None)
    try:
        content = file.read()
    except (ValueError, OSError) as error:  # closed; a lost connection
        raise ImageError(f"{which} cannot be read from the file object: {error}") from None
    if not isinstance(content, bytes):
        raise InputTypeError(f"{which} is a file opened in text mode: open it with open(path, 'rb')")
    if not content:
        raise ImageError(f"{which} is a file object with nothing left to read: rewind it with seek(0)")
    return ImageBytes(content, name if isinstance(name, str) else which)


def _hwc(image: Tensor, which: str) -> np.ndarray:
    """Tensors have their channels first, as torchvision makes them; ones that plainly have them last are left so."""
    if image.device.type == "meta":
        raise ImageError(f"{which} is a tensor on the device meta, which holds no numbers")
    values = image.detach().cpu()
    if values.is_complex() or values.is_sparse or values.is_quantized:
        raise ImageError(f"{which} is a {values.dtype} tensor, which is no image")
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    if values.ndim == 3 and (values.shape[0] in _CHANNELS or values.shape[2] not in _CHANNELS):
        values = values.permute(1, 2, 0)
    return values.numpy()


def _checked(values: np.ndarray, which: str) -> np.ndarray:
    if values.dtype.kind not in "buif":
        raise ImageError(
            f"{which} is an array of type {values.dtype}: give bytes (uint8), other integers, or fractions"
        )
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ImageError(f"{which}: an image has rows, columns and channels, not the shape {values.shape}")
    if values.ndim == 3 and values.shape[0] in _CHANNELS and values.shape[2] > 4:
        raise ImageError(
            f"{which} is an array of shape {values.shape}, whose channels seem to come first: give "
            "image.transpose(1, 2, 0)"
        )
    if values.dtype.kind != "f":
        return _bytes_again(values)
    if not np.isfinite(values).any():
        raise ImageError(f"{which} holds no finite number")
    if np.isnan(values).any():
        raise ImageError(f"{which} holds NaN in {int(np.isnan(values).sum()):,} of {values.size:,} numbers")
    low, high = float(values.min()), float(values.max())
    if values.ndim == 3 and low < 0:
        raise ImageError(
            f"{which} has colours from {low:.3g} to {high:.3g}: it seems to be normalised already. Give it before "
            "normalisation, as fractions in 0…1 or as bytes"
        )
    # A resize of fractions with bicubic weights, or rounding, goes a little above 1.
    if low >= 0 and high <= (_OVERSHOOT if values.ndim == 3 and values.shape[2] > 1 else 1):
        return (values.clip(0, 1) * 255).round().astype(np.uint8)
    return _bytes_again(values)


def _bytes_again(values: np.ndarray) -> np.ndarray:
    """Bytes that arithmetic has left in a wider type: ``np.array(image).astype(np.float32)``.

    Of colours these are all numbers in 0…255. Of grey values they are whole ones; those of 16 bits stay, since
    detectors give such levels, which are stretched as those of files are.
    """
    if values.dtype == np.uint8 or values.dtype.kind == "b" or not 2 <= values.max() <= 255 or values.min() < 0:
        return values
    grey = values.ndim == 2 or values.shape[2] == 1
    if grey and (values.dtype.itemsize == 2 or (values != np.round(values)).any()):
        return values
    return values.round().astype(np.uint8)
