"""Reading images: every common format to upright pixels, safely and fast.

JPEG goes through libjpeg-turbo (simplejpeg) with its accurate transform and smooth chroma upsampling, which gives
the pixels Pillow gives; DICOM through pydicom; TIFF that Pillow does not read as it is meant (channels as pages, 16-bit
colour) through tifffile; everything else through Pillow.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.images.deep import grey_bytes, grey_numbers, is_deep_grey, is_deep_png, read_deep_png, turned
from domainclip.data.images.dicom import dicom_size, is_dicom, read_dicom
from domainclip.data.images.pages import DECODE_ERRORS, chosen_page
from domainclip.data.images.steps import to_levels
from domainclip.data.images.tiff import TiffPage, is_tiff, page_indices, pages_for_pillow, read_tiff, tiff_size
from domainclip.errors import ImageError, MissingImageError
from domainclip.registry import Registry

MAX_PIXELS = 178_956_970
"""Images above this are refused before decoding (Pillow's own limit for a decompression bomb: 2 × 1024³ / 4 / 3)."""

LARGE_IMAGE = 2**24
"""One of more pixels than this comes smaller where the caller needs no more (a JPEG is then decoded at some eighths of
its size): one of 12,000 × 9,000 takes 324 MB whole, for the 160 × 160 that a model sees."""


@dataclass(frozen=True)
class ImageBytes:
    """The content of an image file, and what messages call it."""

    content: bytes
    name: str


ImageLike = Path | str | Image.Image | np.ndarray | ImageBytes
"""An image as the reader takes it: a file, its content, opened by Pillow, or an array ``[h, w]`` or
``[h, w, channels]``. ``given.image_list`` makes it of what users give."""

IMAGE_FORMATS: Registry[Callable[[Path], np.ndarray]] = Registry("image format")
"""Readers of the user's own, by a file's suffix in small letters with the dot, before any other: ``read(path)`` gives
the image at its own depth, ``[h, w]`` or ``[h, w, channels]``, and raises ``ImageError`` where it cannot."""

_ORIENTATION = 0x0112
_DEFAULT = ImagePreprocessing()

_NO_PREAMBLE = (
    ". It may be DICOM without the preamble (128 bytes, then DICM) that files of it begin with: write it anew by "
    "pydicom.dcmread(…, force=True).save_as(…, enforce_file_format=True)"
)

_DECODE_ERRORS: tuple[type[Exception], ...] = (*DECODE_ERRORS, Image.DecompressionBombError)
_OPENED_ERRORS: tuple[type[Exception], ...] = (*_DECODE_ERRORS, AttributeError)  # of a file that was closed


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image say, without decoding it."""

    width: int
    height: int
    format: str
    mode: str
    frames: int


def _open(path: Path, source: io.BytesIO | Path, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source)
    except FileNotFoundError:
        raise MissingImageError(f"{path}: no such file") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path}: more than {MAX_PIXELS:,} pixels; shrink the image first") from None
    except UnidentifiedImageError:
        hint = _NO_PREAMBLE if path.suffix.lower() in {".dcm", ".dicom"} else ""
        raise ImageError(f"{path}: not an image, or its first bytes are damaged{hint}") from None
    except _DECODE_ERRORS as error:
        raise ImageError(f"{path}: cannot be opened ({error})") from None
    _refuse_above(max_pixels, image.width, image.height, path)
    return image


def _refuse_above(max_pixels: int, width: int, height: int, path: Path) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width}×{height} is {width * height:,} pixels, above max_image_pixels={max_pixels:,}; "
            "shrink the image first"
        )


def _start(path: Path) -> bytes:
    try:
        with open(path, "rb") as handle:
            return handle.read(132)
    except OSError as error:
        raise _unopened(path, error) from None


def _unopened(path: Path, error: OSError) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return MissingImageError(f"{path}: no such file")
    return ImageError(f"{path}: {error.strerror or error}")


def image_header(path: Path, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Size, format and mode of an image file.

    Args:
        path: The file.
        max_pixels: Larger images are refused.

    Returns:
        The header.

    Raises:
        ImageError: The file is missing, is no image, is damaged, or has too many pixels.
        MissingExtraError: The library for its format is missing.
    """
    path = Path(path)
    if path.suffix.lower() in IMAGE_FORMATS:
        own = _read_own(path, max_pixels)
        return ImageHeader(own.shape[1], own.shape[0], path.suffix[1:].upper(), str(own.dtype), 1)
    start = _start(path)
    if is_dicom(start) or (is_tiff(start) and _pillow_pages(path, path, _DEFAULT) is None):
        kind, size_of = ("DICOM", dicom_size) if is_dicom(start) else ("TIFF", tiff_size)
        width, height, count, mode = size_of(path, path)
        _refuse_above(max_pixels, width, height, path)
        return ImageHeader(width, height, kind, mode, count)
    with _open(path, Path(path), max_pixels) as image:
        try:
            frames = getattr(image, "n_frames", 1)
        except _DECODE_ERRORS as error:
            raise ImageError(f"{path}: damaged image ({error})") from None
        return ImageHeader(image.width, image.height, image.format or "", image.mode, frames)


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as 8-bit RGB.

    Args:
        image: The image; of an animation the frame it stands at, 0 when just opened.

    Returns:
        RGB: 16-bit grey is scaled to its full range, other deep grey to the image's own; transparency is laid on white.
    """
    if is_deep_grey(image):  # Pillow would clip it
        return Image.fromarray(grey_bytes(grey_numbers(image))).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def read_image(path: Path, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> np.ndarray:
    """Read a file as uint8 RGB, its EXIF orientation applied.

    Args:
        path: The file.
        max_pixels: Larger images are refused.
        at_least: The shorter side in pixels that is enough for the caller; an image above ``LARGE_IMAGE`` comes
            smaller.

    Returns:
        uint8 ``[height, width, 3]``.

    Raises:
        ImageError: The file is missing, truncated, oversized or cannot be decoded.
        MissingExtraError: The library for its format is missing.
    """
    return _read(Path(path), max_pixels, _DEFAULT, at_least, _as_rgb)


def read_array(
    path: Path | ImageBytes,
    max_pixels: int = MAX_PIXELS,
    settings: ImagePreprocessing = _DEFAULT,
    at_least: int | None = None,
) -> np.ndarray:
    """Read a file at its own depth, its EXIF orientation applied.

    Args:
        path: The file, or its content.
        max_pixels: Larger images are refused.
        settings: Says which page, and which window of a DICOM.
        at_least: As for ``read_image``.

    Returns:
        uint8, uint16, float32 …: grey ``[height, width]``, or with channels last.

    Raises:
        ImageError: The file is missing, truncated, oversized or cannot be decoded.
        MissingExtraError: The library for its format is missing.
    """
    return _read(path, max_pixels, settings, at_least, array_of)


def _read(
    source: Path | ImageBytes,
    max_pixels: int,
    settings: ImagePreprocessing,
    at_least: int | None,
    convert: Callable[[Image.Image], np.ndarray],
) -> np.ndarray:
    path = Path(source.name if isinstance(source, ImageBytes) else source)
    if isinstance(source, ImageBytes):
        data = source.content
    elif path.suffix.lower() in IMAGE_FORMATS:
        own = _read_own(path, max_pixels)
        return own if convert is array_of else _bytes_of(own)
    else:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unopened(path, error) from None
    if not data:
        raise ImageError(f"{path}: the file is empty")
    if is_dicom(data[:132]):
        width, height, _, _ = dicom_size(data, path)
        _refuse_above(max_pixels, width, height, path)
        found = read_dicom(data, path, settings)
        return found if convert is array_of else _bytes_of(found)
    pages = [0]
    if is_tiff(data[:4]):
        found_pages = _pillow_pages(path, io.BytesIO(data), settings)
        if found_pages is None:
            width, height, _, _ = tiff_size(data, path)
            _refuse_above(max_pixels, width, height, path)
            found = read_tiff(data, path, settings)
            return found if convert is array_of else _bytes_of(found)
        pages = page_indices(found_pages, settings, path)
    with _open(path, io.BytesIO(data), max_pixels) as image:

        def page(number: int) -> np.ndarray:
            if number:
                image.seek(pages[number])
                _refuse_above(max_pixels, image.width, image.height, path)
            return _page_of(image, data, at_least, convert)

        try:
            return chosen_page(page, len(pages), settings, path)
        except ImageError:
            raise
        except _DECODE_ERRORS as error:
            raise ImageError(f"{path}: damaged image ({error})") from None


def _read_own(path: Path, max_pixels: int) -> np.ndarray:
    try:
        found = np.asarray(IMAGE_FORMATS[path.suffix.lower()](path))
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise _unopened(path, error) from None
    except _DECODE_ERRORS as error:
        raise ImageError(f"{path}: damaged image ({error})") from None
    if found.ndim not in (2, 3) or 0 in found.shape:
        raise ImageError(f"{path}: its reader gave an array of shape {found.shape}, which is no image")
    _refuse_above(max_pixels, found.shape[1], found.shape[0], path)
    return found


def _page_of(
    image: Image.Image, data: bytes, at_least: int | None, convert: Callable[[Image.Image], np.ndarray]
) -> np.ndarray:
    """The page that ``image`` stands at. ``data``: the whole file."""
    if is_deep_png(data) and getattr(image, "n_frames", 1) == 1:
        deep = read_deep_png(data)
        return deep if convert is array_of else _bytes_of(deep)
    if is_deep_grey(image):
        return convert(image)
    orientation = image.getexif().get(_ORIENTATION, 1)
    if image.width * image.height <= LARGE_IMAGE:
        at_least = None
    if image.format == "JPEG" and image.mode in {"RGB", "L"}:
        if orientation in {0, 1}:
            return _decode_jpeg(data, image.mode == "L", image.size, at_least)
        if at_least:  # Pillow's own way to a smaller decoding
            image.draft(image.mode, _smallest(image.size, at_least))
    upright = _upright(image)
    if at_least and upright.mode in {"L", "RGB"} and "transparency" not in upright.info:
        upright = upright.reduce(max(1, min(upright.size) // at_least))
    return convert(upright)


def array_of(image: Image.Image) -> np.ndarray:
    """The numbers of an opened image, upright as its EXIF data say: what ``read_array`` gives of its file, as far as
    Pillow holds it (16-bit colour it does not).

    Args:
        image: The image; of several pages the one it stands at.

    Returns:
        Grey of more than 8 bits as it is, ``[h, w]`` (``deep.grey_numbers``); everything else as uint8 ``[h, w, 3]``.
    """
    return _opened(image, _array_of)


def _array_of(image: Image.Image) -> np.ndarray:
    return _deep_upright(image) if is_deep_grey(image) else np.asarray(to_rgb(_upright(image)))


def _opened(image: Image.Image, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Pillow reads the pixels only now: what is wrong with the file, or that it was closed, shows here."""
    try:
        return convert(image)
    except ImageError:
        raise
    except _OPENED_ERRORS as error:
        name = getattr(image, "filename", "") or "The PIL image"
        raise ImageError(f"{name}: its pixels cannot be read ({error}). Was its file closed? Give the path") from None


def rgb_of(image: ImageLike, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> np.ndarray:
    """An image as it can be shown, from wherever it comes.

    Args:
        image: A path, an opened image, or an array of any depth, ``[h, w]`` or ``[h, w, channels]``.
        max_pixels: As for ``read_image``, of a path.
        at_least: As for ``read_image``, of a path.

    Returns:
        uint8 ``[height, width, 3]``, upright.

    Raises:
        ImageError: The file cannot be read, or the array is no image.
        MissingExtraError: The library for the file's format is missing.
    """
    if isinstance(image, np.ndarray):
        return _bytes_of(image)
    if isinstance(image, Image.Image):
        return _opened(image, _as_rgb)
    source = image if isinstance(image, ImageBytes) else Path(image)
    return _read(source, max_pixels, _DEFAULT, at_least, _as_rgb)


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # newer versions of Pillow turn a TIFF themselves as they load it, and then say 1
    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) not in {0, 1} else image


def _deep_upright(image: Image.Image) -> np.ndarray:
    numbers = grey_numbers(image)
    return turned(numbers, image.getexif().get(_ORIENTATION, 1))  # only now, as above


def _as_rgb(image: Image.Image) -> np.ndarray:
    if is_deep_grey(image):
        return np.repeat(grey_bytes(_deep_upright(image))[..., None], 3, axis=2)
    return np.asarray(to_rgb(_upright(image)))


def _bytes_of(values: np.ndarray) -> np.ndarray:
    """uint8 RGB of an array of any depth and number of channels."""
    levels = (to_levels(values, _DEFAULT) * 255).round().astype(np.uint8)
    return np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else levels


def _pillow_pages(path: Path, source: io.BytesIO | Path, settings: ImagePreprocessing) -> list[TiffPage] | None:
    """The pages of a TIFF that Pillow reads as they are meant; None for those that it does not, or cannot open."""
    try:
        with warnings.catch_warnings(), _open(path, source, MAX_PIXELS) as image:
            warnings.simplefilter("ignore")
            return pages_for_pillow(image, settings)
    except _DECODE_ERRORS:  # a ImageError is a ValueError
        return None


def _smallest(size: tuple[int, int], at_least: int) -> tuple[int, int]:
    """Width and height whose shorter side is ``at_least``, in the proportions of ``size``."""
    factor = min(1.0, at_least / min(size))
    return math.ceil(size[0] * factor), math.ceil(size[1] * factor)


def _decode_jpeg(data: bytes, grey: bool, size: tuple[int, int], at_least: int | None = None) -> np.ndarray:
    width, height = _smallest(size, at_least) if at_least else (0, 0)
    # strict: a truncated file raises instead of giving a half-grey image.
    options = {"min_width": width, "min_height": height, "min_factor": 1, "strict": True}
    try:
        if grey:
            return np.repeat(simplejpeg.decode_jpeg(data, colorspace="GRAY", **options), 3, axis=2)
        return simplejpeg.decode_jpeg(data, colorspace="RGB", **options)
    except ValueError as error:
        if "extraneous bytes" not in str(error):
            raise
        # Stray bytes between markers, as some cameras write, hurt no pixel; a truncated file Pillow refuses too.
        with Image.open(io.BytesIO(data)) as image:
            if at_least:
                image.draft(image.mode, (width, height))
            return np.asarray(image.convert("RGB"))
