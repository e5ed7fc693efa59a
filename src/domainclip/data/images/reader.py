"""Reading images: every common format to upright pixels, safely and fast.

JPEG goes through libjpeg-turbo (simplejpeg) with its accurate transform and smooth chroma upsampling, which gives
the pixels Pillow gives; DICOM through pydicom; TIFF that Pillow does not read as it is meant (channels as pages, 16-bit
colour) through tifffile; everything else through Pillow.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.images.deep import grey_numbers, is_deep_grey, is_deep_png, read_deep_png, turned
from domainclip.data.images.dicom import dicom_size, is_dicom, read_dicom
from domainclip.data.images.image_file import SILENCE, image_file, unopened
from domainclip.data.images.kinds import START, is_never_read, kind_of
from domainclip.data.images.pages import DECODE_ERRORS, chosen_page, refuse_above
from domainclip.data.images.steps import to_levels
from domainclip.data.images.tiff import TiffPage, is_tiff, page_indices, pages_for_pillow, read_tiff, tiff_size
from domainclip.errors import ImageError, ImageTooLargeError
from domainclip.registry import Registry

MAX_PIXELS = 178_956_970
"""Images above this are refused before decoding (Pillow's own limit for a decompression bomb: 2 × 1024³ / 4 / 3)."""

LARGE_IMAGE = 2**24
"""One of more pixels than this comes smaller where the caller needs no more (a JPEG is then decoded at some eighths of
its size): one of 12,000 × 9,000 takes 324 MB whole, for the 160 × 160 that a model sees."""

_BAND = 2**22
"""Pixels that are converted at a time."""


@dataclass(frozen=True)
class ImageBytes:
    """The content of an image file, and what messages call it. ``formats``: what Pillow may take it for, in Pillow's
    words; None for all that it knows."""

    content: bytes
    name: str
    formats: tuple[str, ...] | None = None


ImageLike = Path | str | Image.Image | np.ndarray | ImageBytes
"""An image as the reader takes it: a file, its content, opened by Pillow, or an array ``[h, w]`` or
``[h, w, channels]``. ``given.image_list`` makes it of what users give."""

IMAGE_FORMATS: Registry[Callable[[Path], np.ndarray]] = Registry("image format")
"""Readers of the user's own, by a file's suffix in small letters with the dot, before any other: ``read(path)`` gives
the image at its own depth, ``[h, w]`` or ``[h, w, channels]``, and raises ``ImageError`` where it cannot."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""
_DNG_VERSION = 50706
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_DEFAULT = ImagePreprocessing()

_NO_PREAMBLE = (
    ". It may be DICOM without the preamble (128 bytes, then DICM) that files of it begin with: write it anew by "
    "pydicom.dcmread(…, force=True).save_as(…, enforce_file_format=True)"
)

_DECODE_ERRORS: tuple[type[Exception], ...] = (*DECODE_ERRORS, Image.DecompressionBombError)
_OPENED_ERRORS: tuple[type[Exception], ...] = (*_DECODE_ERRORS, AttributeError)  # of a file that was closed

try:  # Pillow then opens HEIC as any other format
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image say, without decoding it."""

    width: int
    height: int
    format: str
    mode: str
    frames: int


def _open(path: Path, file: BinaryIO, max_pixels: int, formats: tuple[str, ...] | None) -> Image.Image:
    try:
        image = Image.open(file, formats=formats)
        _refuse_large(image, max_pixels, path)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageTooLargeError(f"{path}: more than {2 * MAX_PIXELS:,} pixels; shrink the image first") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: {_what_it_is(_start(file), path)}") from None
    except _DECODE_ERRORS as error:
        raise ImageError(f"{path}: cannot be opened ({_said(error)})") from None
    return image


def _refuse_large(image: Image.Image, max_pixels: int, path: Path) -> None:
    refuse_above(max_pixels, image.width, image.height, path, _bytes_per_pixel(image))
    tags = getattr(image, "tag_v2", {})  # a tile of a TIFF is decoded whole, however little of it the image is
    refuse_above(max_pixels, int(tags.get(_TILE_WIDTH, 1)), int(tags.get(_TILE_LENGTH, 1)), path)


def _said(error: Exception) -> str:
    """What a decoder says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _what_it_is(start: bytes, path: Path) -> str:
    kind = kind_of(start, path)
    if kind is not None and kind.is_read:
        return f"this is {kind.name}, and it is damaged"
    if kind is not None:
        return f"this is {kind.name}: {kind.advice}"
    hint = _NO_PREAMBLE if path.suffix.lower() in {".dcm", ".dicom"} else ""
    return f"not an image, or its first bytes are damaged{hint}"


def _bytes_per_pixel(image: Image.Image) -> int:
    if image.mode in {"I", "F"}:
        return 4
    return 2 if image.mode.startswith("I;16") else len(image.getbands())


def _start(file: BinaryIO) -> bytes:
    file.seek(0)
    start = file.read(START)
    file.seek(0)
    return start


def image_header(path: Path | ImageBytes, max_pixels: int = MAX_PIXELS, count_frames: bool = True) -> ImageHeader:
    """Size, format and mode of an image file.

    Args:
        path: The file, or its content.
        max_pixels: Larger images are refused.
        count_frames: Whether frames are counted where the whole file has to be walked through for it; they are 1
            otherwise.

    Returns:
        The header.

    Raises:
        ImageError: The file is missing, is no image, is damaged, or has too many pixels.
        MissingExtraError: The library for its format is missing.
    """
    if isinstance(path, ImageBytes):
        return _header(Path(path.name), _content_file(path), max_pixels, path.formats, count_frames)
    path = Path(path)
    if path.suffix.lower() in IMAGE_FORMATS:
        own = _read_own(path, max_pixels)
        return ImageHeader(own.shape[1], own.shape[0], path.suffix[1:].upper(), str(own.dtype), 1)
    with image_file(path, whole=False) as file:
        return _header(path, file, max_pixels, None, count_frames)


def _content_file(image: ImageBytes) -> BinaryIO:
    if not image.content:
        raise ImageError(f"{image.name}: the file is empty")
    return io.BytesIO(image.content)


def _header(
    path: Path, file: BinaryIO, max_pixels: int, formats: tuple[str, ...] | None, count_frames: bool
) -> ImageHeader:
    with SILENCE:
        start = _checked_start(file, path)
        if is_dicom(start) or (is_tiff(start) and _pillow_pages(path, file, _DEFAULT) is None):
            kind, size_of = ("DICOM", dicom_size) if is_dicom(start) else ("TIFF", tiff_size)
            file.seek(0)
            size = size_of(file, path)
            refuse_above(max_pixels, size.width, size.height, path, size.bytes_per_pixel)
            return ImageHeader(size.width, size.height, kind, size.mode, size.pages)
        with _open(path, file, max_pixels, formats) as image:
            try:
                frames = getattr(image, "n_frames", 1) if count_frames else 1
            except _DECODE_ERRORS as error:
                raise ImageError(f"{path}: damaged image ({_said(error)})") from None
            return ImageHeader(image.width, image.height, image.format or "", image.mode, frames)


def _checked_start(file: BinaryIO, path: Path) -> bytes:
    """The file's first bytes, if they are of no kind of which a decoder would give a preview or a label."""
    start = _start(file)
    if is_never_read(kind_of(start, path)):
        raise ImageError(f"{path}: {_what_it_is(start, path)}")
    return start


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as 8-bit RGB.

    Args:
        image: The image; of an animation the frame it stands at, 0 when just opened.

    Returns:
        RGB: deep grey is scaled as ``read_image`` does; transparency is laid on white.
    """
    if is_deep_grey(image):  # Pillow would clip it
        return Image.fromarray(_bytes_of(grey_numbers(image)))
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
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
    return _bytes_of(read_array(path, max_pixels, _DEFAULT, at_least))


def read_array(
    path: Path | ImageBytes,
    max_pixels: int = MAX_PIXELS,
    settings: ImagePreprocessing = _DEFAULT,
    at_least: int | None = None,
    large: int | None = None,
) -> np.ndarray:
    """Read a file at its own depth, its EXIF orientation applied.

    Args:
        path: The file, or its content.
        max_pixels: Larger images are refused.
        settings: Says which page, and which window of a DICOM.
        at_least: As for ``read_image``.
        large: An image of more pixels comes smaller; ``LARGE_IMAGE``, if left out.

    Returns:
        uint8, uint16, float32 …: grey ``[height, width]``, or with channels last.

    Raises:
        ImageError: The file is missing, truncated, oversized or cannot be decoded.
        MissingExtraError: The library for its format is missing.
    """
    if isinstance(path, ImageBytes):
        file = _content_file(path)
        return _read(Path(path.name), file, max_pixels, settings, at_least, large, path.formats)
    path = Path(path)
    if path.suffix.lower() in IMAGE_FORMATS:
        return _read_own(path, max_pixels)
    with image_file(path) as file:
        return _read(path, file, max_pixels, settings, at_least, large)


def _read(
    path: Path,
    file: BinaryIO,
    max_pixels: int,
    settings: ImagePreprocessing,
    at_least: int | None,
    large: int | None,
    formats: tuple[str, ...] | None = None,
) -> np.ndarray:
    try:
        with SILENCE:
            return _decoded(path, file, max_pixels, settings, at_least, large, formats)
    except MemoryError:
        raise ImageError(f"{path}: there is not enough memory to decode it; shrink the image first") from None


def _decoded(
    path: Path,
    file: BinaryIO,
    max_pixels: int,
    settings: ImagePreprocessing,
    at_least: int | None,
    large: int | None,
    formats: tuple[str, ...] | None,
) -> np.ndarray:
    start = _checked_start(file, path)
    if is_dicom(start):
        size = dicom_size(file, path)
        refuse_above(max_pixels, size.width, size.height, path, size.bytes_per_pixel)
        return read_dicom(file, path, settings)
    pages = [0]
    if is_tiff(start):
        found_pages = _pillow_pages(path, file, settings)
        if found_pages is None:
            file.seek(0)
            size = tiff_size(file, path)
            refuse_above(max_pixels, size.width, size.height, path, size.bytes_per_pixel)
            return read_tiff(file, path, settings, max_pixels)
        pages = page_indices(found_pages, settings, path)
    file.seek(0)
    with _open(path, file, max_pixels, formats) as image:

        def page(number: int) -> np.ndarray:
            if number:
                image.seek(pages[number])
                _refuse_large(image, max_pixels, path)
            smaller = image.width * image.height > (LARGE_IMAGE if large is None else large)
            return _page_of(image, file, path, max_pixels, at_least if smaller else None)

        try:
            if _DNG_VERSION in getattr(image, "tag_v2", {}):
                raise ImageError(f"{path}: {_what_it_is(start, path.with_suffix('.dng'))}")
            return chosen_page(page, len(pages), settings, path)
        except ImageError:
            raise
        except _DECODE_ERRORS as error:
            raise ImageError(f"{path}: damaged image ({_said(error)})") from None


def _read_own(path: Path, max_pixels: int) -> np.ndarray:
    try:
        found = np.asarray(IMAGE_FORMATS[path.suffix.lower()](path))
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise unopened(path, error) from None
    except _DECODE_ERRORS as error:
        raise ImageError(f"{path}: damaged image ({_said(error)})") from None
    if found.ndim not in (2, 3) or 0 in found.shape:
        raise ImageError(f"{path}: its reader gave an array of shape {found.shape}, which is no image")
    refuse_above(max_pixels, found.shape[1], found.shape[0], path)
    return found


def _page_of(image: Image.Image, file: BinaryIO, path: Path, max_pixels: int, at_least: int | None) -> np.ndarray:
    """The page that ``image`` stands at. ``file``: from which it was opened."""
    if is_deep_png(_start(file)) and getattr(image, "n_frames", 1) == 1:
        refuse_above(max_pixels, image.width, image.height, path, 2 * len(image.getbands()))
        return read_deep_png(file, orientation_of(image))
    file.seek(0)
    if is_deep_grey(image):
        return _numbers(image)
    orientation = orientation_of(image)
    if image.format == "JPEG" and image.mode in {"RGB", "L"}:
        if orientation == 1:
            return _decode_jpeg(file.read(), image.mode == "L", image.size, at_least)
        if at_least:  # Pillow's own way to a smaller decoding
            image.draft(image.mode, _smallest(image.size, at_least))
    upright = _upright(image)
    if at_least and upright.mode in {"L", "RGB"} and "transparency" not in upright.info:
        upright = upright.reduce(max(1, min(upright.size) // at_least))
    return _rgb_array(upright)


def _rgb_array(image: Image.Image) -> np.ndarray:
    """``to_rgb`` in bands of rows: an image with transparency would take four times its memory at once."""
    values = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        values[top:bottom] = np.asarray(to_rgb(image.crop((0, top, image.width, bottom))))
    return values


def orientation_of(image: Image.Image) -> int:
    """How an image is to be turned; a broken EXIF says nothing.

    Args:
        image: The image.

    Returns:
        1 … 8, as EXIF has it.
    """
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except _DECODE_ERRORS:
        return 1
    return found if found in _TURNS else 1


def array_of(image: Image.Image) -> np.ndarray:
    """The numbers of an opened image, upright as its EXIF data say: what ``read_array`` gives of its file, as far as
    Pillow holds it (16-bit colour it does not).

    Args:
        image: The image; of several pages the one it stands at.

    Returns:
        Grey of more than 8 bits as it is, ``[h, w]`` (``deep.grey_numbers``); everything else as uint8 ``[h, w, 3]``.

    Raises:
        ImageError: Its pixels cannot be read.
    """
    try:
        with SILENCE:
            return _numbers(image)
    except ImageError:
        raise
    except _OPENED_ERRORS as error:  # Pillow reads the pixels only now
        name = getattr(image, "filename", "") or "The PIL image"
        raise ImageError(
            f"{name}: its pixels cannot be read ({_said(error)}). Was its file closed? Give the path"
        ) from None


def _numbers(image: Image.Image) -> np.ndarray:
    if is_deep_grey(image):
        numbers = grey_numbers(image)
        return turned(numbers, orientation_of(image))  # only now, as in _upright
    return np.asarray(to_rgb(_upright(image)))


def rgb_of(image: ImageLike, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> np.ndarray:
    """An image as it can be shown, from wherever it comes.

    Args:
        image: A path, a file's content, an opened image, or an array of any depth, ``[h, w]`` or ``[h, w, channels]``.
        max_pixels: As for ``read_image``, of a file.
        at_least: As for ``read_image``, of a file.

    Returns:
        uint8 ``[height, width, 3]``, upright.

    Raises:
        ImageError: The file cannot be read, or the array is no image.
        MissingExtraError: The library for the file's format is missing.
    """
    if isinstance(image, np.ndarray):
        return _bytes_of(image)
    if isinstance(image, Image.Image):
        return _bytes_of(array_of(image))
    return _bytes_of(
        read_array(image if isinstance(image, ImageBytes) else Path(image), max_pixels, _DEFAULT, at_least)
    )


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # newer versions of Pillow turn a TIFF themselves as they load it, and then say 1
    turn = _TURNS.get(orientation_of(image))
    return image if turn is None else image.transpose(turn)


def _bytes_of(values: np.ndarray) -> np.ndarray:
    """uint8 RGB of an array of any depth and number of channels."""
    if values.dtype == np.uint8 and values.ndim == 3 and values.shape[2] == 3:
        return values
    levels = (to_levels(values, _DEFAULT) * 255).round().astype(np.uint8)
    return np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else levels


def _pillow_pages(path: Path, file: BinaryIO, settings: ImagePreprocessing) -> list[TiffPage] | None:
    """The pages of a TIFF that Pillow reads as they are meant; None for those that it does not, or cannot open."""
    try:
        file.seek(0)
        with _open(path, file, MAX_PIXELS, ("TIFF",)) as image:
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
