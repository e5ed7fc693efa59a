"""TIFF: which pages are the image's, whether Pillow reads them as they are meant, and those that it does not, by
tifffile (stacks, channels as pages, 16-bit colour), with what their tags say of the numbers.
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.images.deep import (
    NO_DATA,
    from_inks,
    negative,
    on_white,
    through_palette,
    turned,
    without_no_data,
)
from domainclip.data.images.pages import DECODE_ERRORS, MOST_BYTES, ImageSize, chosen_page, refuse_above, refuse_unlike
from domainclip.errors import ImageError, ImageTooLargeError, MissingExtraError

_SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
"""Little and big endian, classic and BigTIFF."""

_MOST_CHANNELS = 256
"""More are no image, and a damaged header may claim any number."""


def is_tiff(start: bytes) -> bool:
    """Whether these are the first bytes of a TIFF, classic or BigTIFF.

    Args:
        start: The first 4 bytes at least.

    Returns:
        Whether they are.
    """
    return start[:4] in _SIGNATURES


def tiff_size(file: BinaryIO, path: Path) -> ImageSize:
    """What a TIFF says of its first series, without decoding it.

    Args:
        file: The file.
        path: Its path, for messages.

    Returns:
        Its size; for a mode, type and number of channels ("uint16×3").

    Raises:
        ImageError: The file is damaged or has no plane of pixels.
        MissingExtraError: tifffile is missing.
    """
    with _opened(file, path) as opened:
        series = _series(opened, path)
        sizes = _sizes(series)
        mode = f"{series.dtype}×{_channels(sizes)}"
        return ImageSize(sizes["X"], sizes["Y"], _pages(sizes), mode, series.dtype.itemsize * _channels(sizes))


def read_tiff(file: BinaryIO, path: Path, settings: ImagePreprocessing, max_pixels: int) -> np.ndarray:
    """The chosen page at its own depth, upright.

    Axes are taken as the file's metadata (OME, ImageJ, shape) name them: C and S are channels, every other axis beside
    Y and X (Z, T, Q …) counts pages. ``first`` and ``middle`` are of the first series (what other series hold may be
    labels and smaller copies), ``error`` and ``mean`` look at all.

    Args:
        file: The file.
        path: Its path, for messages.
        settings: ``page`` is heeded.
        max_pixels: Of a page; the file is refused where all of its pages have to be decoded and have many more.

    Returns:
        ``[h, w]`` or ``[h, w, channels]``.

    Raises:
        ImageError: The file has too many channels, cannot be decoded, or its pages are refused (``chosen_page``).
        MissingExtraError: tifffile is missing.
    """
    with _opened(file, path) as opened:
        first = _series(opened, path)
        all_series = [first]
        if settings.page in {"error", "mean"}:
            all_series += [one for one in opened.series[1:] if not (one.keyframe.is_reduced or one.keyframe.is_mask)]
        pages = [(series, index) for series in all_series for index in range(_pages(_sizes(series)))]
        whole: dict[int, np.ndarray] = {}

        def page(number: int) -> np.ndarray:
            series, index = pages[number]
            # Before decoding: only the first series' size was held against the limit.
            refuse_unlike(number, _kind(series), _kind(first), path)
            return _page(series, index, whole, path, max_pixels)

        return chosen_page(page, len(pages), settings, path)


def _page(series: Any, index: int, whole: dict[int, np.ndarray], path: Path, max_pixels: int) -> np.ndarray:
    axes, sizes = series.axes, _sizes(series)
    if _channels(sizes) > _MOST_CHANNELS:
        raise ImageError(f"{path}: {_channels(sizes)} channels, of which at most {_MOST_CHANNELS} are read")
    page_axes = [axis for axis in axes if axis not in "YXCS"]
    kept = "".join(axis for axis in axes if axis in "YXCS")
    counts = [sizes[axis] for axis in page_axes]
    place = dict(zip(page_axes, np.unravel_index(index, counts) if counts else (), strict=True))
    values = _channels_last(_one_page(series, place, kept, whole, path, max_pixels), kept)
    return meant_by_tags(values, series.keyframe, stacked=sizes.get("C", 1) > 1, path=path)


def _one_page(
    series: Any, place: dict[str, Any], kept: str, whole: dict[int, np.ndarray], path: Path, max_pixels: int
) -> np.ndarray:
    """The axes ``kept`` at ``place``: read alone where the file's own pages allow it, else cut out of all."""
    axes, shape = series.axes, series.shape
    inside = "".join(axis for axis in axes if axis in "YXS")
    per_page = math.prod(size for axis, size in zip(axes, shape, strict=True) if axis in inside)
    outside = [(axis, size) for axis, size in zip(axes, shape, strict=True) if axis not in inside]
    flat = len(series.pages) == math.prod(size for _, size in outside) and axes.endswith(inside)
    if flat and series.keyframe is not None and math.prod(series.keyframe.shape) == per_page:
        channel = [(axis, size) for axis, size in outside if axis == "C"]
        numbers = []
        for c in range(channel[0][1] if channel else 1):
            index = [int(place[axis]) if axis in place else c for axis, _ in outside]
            numbers.append(int(np.ravel_multi_index(index, [size for _, size in outside])) if outside else 0)
        _refuse_bomb([series.pages[number] for number in numbers], path, max_pixels)
        layers = [series.pages[number].asarray() for number in numbers]
        inner_shape = [size for axis, size in zip(axes, shape, strict=True) if axis in inside]
        layers = [layer.reshape(inner_shape) for layer in layers]
        return np.stack(layers) if channel else layers[0]
    if id(series) not in whole:
        refuse_above(max_pixels, 1, 1, path, MOST_BYTES * math.prod(shape) * series.dtype.itemsize // 8)
        _refuse_bomb(series.pages, path, max_pixels)
        whole[id(series)] = series.asarray().reshape(shape)
    selection = tuple(int(place[axis]) if axis in place else slice(None) for axis in axes)
    return whole[id(series)][selection]


_PACK_BITS = 32773
_MOST_LZMA = 2**26
"""Bytes of memory for undoing LZMA, whose files say how much it needs."""
_UNDONE_AT_ONCE: Mapping[int, Callable[[], Any]] = {
    **dict.fromkeys((8, 32946), zlib.decompressobj),
    34925: lambda: lzma.LZMADecompressor(memlimit=_MOST_LZMA),
}
"""Compressions (TIFF 6.0, tag 259) of which tifffile by itself undoes a strip or a tile whatever it comes to."""


def _refuse_bomb(pages: Iterable[Any], path: Path, max_pixels: int) -> None:
    """Count what strips and tiles come to, piece by piece, before they are undone at once."""
    for page in pages:
        if page is None:
            continue
        frame = page.keyframe
        refuse_above(max_pixels, frame.tilewidth, frame.tilelength, path)
        left = 2 * math.prod(frame.chunked) * math.prod(frame.chunks) * frame.dtype.itemsize + _SPARE
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            if frame.compression != _PACK_BITS and frame.compression not in _UNDONE_AT_ONCE:
                break
            file = page.parent.filehandle
            file.seek(offset)
            left -= _size_undone(frame.compression, file.read(count), left)
            if left < 0:
                raise ImageTooLargeError(
                    f"{path}: its compressed data come to more than its {frame.imagewidth}×{frame.imagelength} pixels: "
                    "it is damaged, or was made to fill memory. Export it again"
                )


_SPARE = 2**16
"""Bytes by which data may exceed an image: some programs pad strips."""


def _size_undone(compression: int, data: bytes, most: int) -> int:
    """Bytes that data come to; any number above ``most`` where there are more."""
    if compression == _PACK_BITS:
        return size_unpacked(data, most)
    undo, total = _UNDONE_AT_ONCE[compression](), 0
    piece = undo.decompress(data, min(2**20, most + 1))
    while piece and total <= most:
        total += len(piece)
        rest = getattr(undo, "unconsumed_tail", b"")  # zlib leaves it to the caller, lzma keeps it
        piece = b"" if undo.eof else undo.decompress(rest, 2**20)
    return total


def size_unpacked(data: bytes, most: int) -> int:
    """What PackBits data come to (TIFF 6.0, section 9; DICOM's RLE is the same), without undoing them.

    Args:
        data: The packed bytes.
        most: Where to stop counting.

    Returns:
        Bytes; any number above ``most`` where there are more.
    """
    at = total = 0
    while at < len(data) and total <= most:
        head = data[at]
        total += head + 1 if head < 128 else 257 - head if head > 128 else 0
        at += head + 2 if head < 128 else 2 if head > 128 else 1
    return total


def _channels_last(values: np.ndarray, kept: str) -> np.ndarray:
    order = [kept.index("Y"), kept.index("X"), *(kept.index(axis) for axis in "CS" if axis in kept)]
    values = values.transpose(order)
    if values.ndim > 2:
        values = values.reshape(*values.shape[:2], -1)
        values = values[..., 0] if values.shape[2] == 1 else values
    return values


def _sizes(series: Any) -> dict[str, int]:
    return dict(zip(series.axes, series.shape, strict=True))


def _kind(series: Any) -> tuple[tuple[int, ...], str]:
    """What pages that are averaged must have in common."""
    sizes = _sizes(series)
    return (sizes.get("Y", 0), sizes.get("X", 0), _channels(sizes)), str(series.dtype)


def _pages(sizes: dict[str, int]) -> int:
    return math.prod(size for axis, size in sizes.items() if axis not in "YXCS")


def _channels(sizes: dict[str, int]) -> int:
    return sizes.get("C", 1) * sizes.get("S", 1)


def _series(file: Any, path: Path) -> Any:
    series = file.series[0] if file.series else None
    if series is None or not {"Y", "X"} <= set(series.axes) or len(set(series.axes)) != len(series.axes):
        axes = series.axes if series is not None else "none"
        raise ImageError(f"{path}: this TIFF has no plane of pixels (axes {axes}): export it as a plain image")
    return series


@contextmanager
def _opened(file: BinaryIO, path: Path) -> Iterator[Any]:
    try:
        import tifffile
    except ImportError:
        purpose = f"Reading {path} (several pages, or 16-bit colour)"
        raise MissingExtraError("tifffile", "tiff", purpose) from None
    try:
        file.seek(0)
        with tifffile.TiffFile(file) as opened:
            yield opened
    except (ImageError, MissingExtraError):
        raise
    except (tifffile.TiffFileError, AttributeError, *DECODE_ERRORS) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = ". Its compression needs a package: pip install imagecodecs" if "imagecodecs" in reason else ""
        raise ImageError(f"{path}: this TIFF cannot be decoded ({reason}){hint}") from None


_SUBFILE, _BITS, _DESCRIPTION = 0x00FE, 0x0102, 0x010E
_COPY_OR_MASK = 1 | 4
"""Bits of NewSubfileType: a smaller copy of another page, or a mask for one."""


@dataclass(frozen=True)
class TiffPage:
    width: int
    height: int
    mode: str
    bits: int
    extra: bool

    @classmethod
    def of(cls, image: Image.Image) -> TiffPage:
        """What the page says that an opened TIFF stands at.

        Args:
            image: The TIFF, opened by Pillow.

        Returns:
            Its size, mode and bits, and whether it is a smaller copy or a mask.
        """
        tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
        extra = bool(int(tags.get(_SUBFILE, 0)) & _COPY_OR_MASK)
        return cls(image.width, image.height, image.mode, max(_tuple(tags.get(_BITS, 1))), extra)

    @property
    def kind(self) -> tuple[tuple[int, int], str]:
        return (self.height, self.width), f"{self.mode} of {self.bits} bits"


def pages_for_pillow(image: Image.Image, settings: ImagePreprocessing) -> list[TiffPage] | None:
    """The pages that Pillow found, of which only the first is looked at where it is the image.

    Args:
        image: The TIFF, opened by Pillow.
        settings: ``page`` is heeded.

    Returns:
        The pages; None where the file is one for tifffile: stacks with channels as pages, and deep colour, of which
        Pillow keeps the upper eight bits.
    """
    first = TiffPage.of(image)
    described = str(getattr(image, "tag_v2", {}).get(_DESCRIPTION, ""))
    if described.startswith("ImageJ=") or "<OME" in described:
        return None
    if first.bits > 8 and first.mode in {"RGB", "RGBA", "RGBX", "CMYK", "LAB"}:
        return None
    if settings.page == "first":
        return [first]
    count = getattr(image, "n_frames", 1)
    if count > 1 and described.startswith("{") and '"axes"' in described:  # tifffile's own
        return None
    found = [first]
    for number in range(1, count):
        image.seek(number)
        found.append(TiffPage.of(image))
    return found


def page_indices(pages: Sequence[TiffPage], settings: ImagePreprocessing, path: Path) -> list[int]:
    """The pages that ``settings.page`` chooses from.

    The middle one is sought among the pages like the first, beside which scanners and microscopes keep labels and
    smaller copies; error and mean look at all but those copies and masks.

    Args:
        pages: From ``pages_for_pillow``, one at least.
        settings: ``page`` is heeded.
        path: The file, for messages.

    Returns:
        Numbers in ``pages``, ascending.

    Raises:
        ImageError: Unlike pages are to be averaged.
    """
    first = pages[0]
    if settings.page == "middle":
        return [number for number, page in enumerate(pages) if page.kind == first.kind]
    numbers = [number for number, page in enumerate(pages) if number == 0 or not page.extra]
    if settings.page == "mean":
        for number in numbers:
            refuse_unlike(number, pages[number].kind, first.kind, path)
    return numbers


def _tuple(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


_WHITE_IS_ZERO, _PALETTE, _INKS = 0, 3, 5
_COLOURS = {0: 1, 1: 1, 2: 3, _INKS: 4}
"""Samples that are colour, of the interpretations that may have further ones (TIFF 6.0, ExtraSamples)."""
_LAB = {8, 9, 10}
_PREMULTIPLIED, _ALPHA = 1, 2
_PHOTOMETRIC, _ORIENTATION, _INK_SET = 262, 274, 332


def meant_by_tags(values: np.ndarray, page: Any, stacked: bool, path: Path) -> np.ndarray:
    """A page as Pillow would show it, had it the depth.

    Args:
        values: ``[h, w]`` or ``[h, w, c]`` as the file keeps them.
        page: tifffile's page, for its tags.
        stacked: The channels are pages of their own, each a measurement: no index into a palette, no ink, no
            transparency.
        path: The file, for messages.

    Returns:
        ``[h, w]`` or ``[h, w, c]``, upright. 32 unsigned bits come as int64, which has an image span its own range:
        nothing fills all of theirs.

    Raises:
        ImageError: The colours are of a kind that is not converted.
    """
    if NO_DATA in page.tags:
        values = without_no_data(values, page.tags[NO_DATA].value)
    kind = int(page.photometric) if _PHOTOMETRIC in page.tags else -1
    if kind in _LAB or (kind == _INKS and not stacked and not _four_inks(values, page)):
        raise ImageError(f"{path}: deep colours kept as {page.photometric.name} are not converted: export it as RGB")
    if kind == _PALETTE and values.ndim == 2 and page.colormap is not None:
        values = through_palette(values, page.colormap)
    elif not stacked and values.ndim == 3:
        values = _colours(values, page, kind)
    elif kind == _WHITE_IS_ZERO:
        values = negative(values, page.bitspersample)
    if values.dtype == np.uint32:
        values = values.astype(np.int64)
    tag = page.tags.get(_ORIENTATION)
    return turned(values, tag.value if tag is not None and isinstance(tag.value, int) else 1)


def _colours(values: np.ndarray, page: Any, kind: int) -> np.ndarray:
    extra = [int(sample) for sample in page.extrasamples]
    alphas = [place for place, sample in enumerate(extra) if sample in {_PREMULTIPLIED, _ALPHA}]
    transparency = None
    if alphas and _COLOURS.get(kind, 0) + len(extra) == values.shape[2]:
        place = _COLOURS.get(kind, 0) + alphas[0]
        transparency, values = values[..., place], np.delete(values, place, axis=2)
    if kind == _INKS:
        values = from_inks(values[..., :4])
    elif kind == _WHITE_IS_ZERO:
        values = negative(values, page.bitspersample)
    if transparency is not None:
        values = on_white(values, transparency, premultiplied=extra[alphas[0]] == _PREMULTIPLIED)
    return values[..., 0] if values.shape[2] == 1 else values


def _four_inks(values: np.ndarray, page: Any) -> bool:
    """Whether they are cyan, magenta, yellow and black (InkSet 1, or not said)."""
    tag = page.tags.get(_INK_SET)
    return values.ndim == 3 and values.shape[2] >= 4 and (tag is None or tag.value == 1)
