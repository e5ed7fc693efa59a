"""DICOM files to grey levels or colours, by pydicom: rescale, window, photometric interpretation.

Files of one image say how their numbers are rescaled and which window they are to be seen through at the top, enhanced
multi-frame files in functional groups (PS3.3 C.7.6.16): in those of the frame, else in those that all frames share.
Empty elements, which many devices write, say nothing.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from scipy.special import expit

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.images.pages import DECODE_ERRORS, ImageSize, chosen_page
from domainclip.errors import ImageError, MissingExtraError

_META, _DEFLATED = 2**12, b"1.2.840.10008.1.2.1.99"
"""Bytes in which a file says its transfer syntax, and that of one which is compressed as a whole (PS3.5, A.5)."""
_MOST_DEFLATED = 2**30
"""Bytes of a data set that is compressed as a whole, pixels included."""


def is_dicom(start: bytes) -> bool:
    """Whether these are the first bytes of a DICOM file (PS3.10, section 7.1).

    Args:
        start: The first 132 bytes at least.

    Returns:
        Whether ``DICM`` follows the preamble.
    """
    return start[128:132] == b"DICM"


def dicom_size(file: BinaryIO, path: Path) -> ImageSize:
    """What a DICOM file says of its image, without decoding it.

    Args:
        file: The file.
        path: Its path, for messages.

    Returns:
        Its size, with the photometric interpretation for a mode.

    Raises:
        ImageError: The file has no image or is damaged.
        MissingExtraError: pydicom is missing.
    """
    with _errors_in_plain_words(path):
        dataset = _read(file, path, stop_before_pixels=True)
        if "Rows" not in dataset or "Columns" not in dataset:
            raise ImageError(f"{path}: a DICOM file without an image ({dataset.get('Modality', 'no modality')})")
        frames = int(dataset.get("NumberOfFrames") or 1)
        stored = int(dataset.get("BitsAllocated") or 8) // 8 * int(dataset.get("SamplesPerPixel") or 1)
        kind = str(dataset.get("PhotometricInterpretation", ""))
        return ImageSize(int(dataset.Columns), int(dataset.Rows), frames, kind, max(1, stored))


def read_dicom(file: BinaryIO, path: Path, settings: ImagePreprocessing) -> np.ndarray:
    """The chosen frame.

    Grey is uint8 where a window says what is black and white, or where the file keeps at most 8 bits without a unit
    (ultrasound, secondary capture), and float32 in the file's units (Hounsfield in CT) elsewhere. MONOCHROME1, where
    low values are to be seen bright, comes inverted either way. A mean is taken of rescaled frames, and seen through
    the first one's window.

    Args:
        file: The file.
        path: Its path, for messages.
        settings: ``page``, ``dicom_window``, ``window_center`` and ``window_width`` are heeded.

    Returns:
        ``[h, w]`` grey, or ``[h, w, 3]`` RGB.

    Raises:
        ImageError: The file cannot be decoded, or its frames are refused (``chosen_page``).
        MissingExtraError: pydicom is missing.
    """
    with _errors_in_plain_words(path):
        from pydicom.pixels import pixel_array

        dataset = _read(file, path)
        frames = int(dataset.get("NumberOfFrames") or 1)
        kind = str(dataset.get("PhotometricInterpretation", ""))
        padding_value = number_in(dataset, "PixelPaddingValue")
        numbers: list[int] = []
        paddings: list[np.ndarray] = []
        bits = int(number_in(dataset, "BitsStored") or 0)  # of grey values that are brightness itself; else 0

        def frame(number: int) -> np.ndarray:
            nonlocal bits
            stored = pixel_array(dataset, index=number)
            if kind == "PALETTE COLOR":
                return _palette_colours(stored, dataset)
            if stored.ndim == 3:
                return _full_colours(stored, bits)
            numbers.append(number)
            if padding_value is not None:
                paddings.append(stored == padding_value)
            values = rescaled(stored, dataset, number)
            # What has a unit, a sign, or more than its bits may hold, is no brightness.
            if values is not stored or stored.dtype.kind != "u" or bits > 8 or stored.max() >= 2**bits:
                bits = 0
            return values

        values = chosen_page(frame, frames, settings, path)
        if values.ndim == 3:
            return values
        view = view_of(dataset, numbers[0]) if settings.dicom_window == "file" else None
        if settings.window_center is not None and settings.window_width is not None:
            view = Window(settings.window_center, settings.window_width)
        padding = np.logical_and.reduce(paddings) if paddings else None
        if view is None and not bits:
            return _own_units(values, padding, inverted=kind == "MONOCHROME1")
        if isinstance(view, Window):
            shown = view.shown(values)
        else:
            shown = values / float(2**bits - 1) if view is None else _through_table(values, view, dataset)
        shown = 1 - shown if kind == "MONOCHROME1" else shown
        if padding is not None:
            shown[padding] = 0.0
        return (shown.clip(0, 1) * 255).round().astype(np.uint8)


def _palette_colours(stored: np.ndarray, dataset: Any) -> np.ndarray:
    from pydicom.pixels import apply_color_lut

    values = apply_color_lut(stored, dataset)
    return (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values


def _full_colours(stored: np.ndarray, bits: int) -> np.ndarray:
    """Colours of, say, 12 bits kept in 16, as all of 16: nothing after this knows how many bits there were."""
    top = 2**bits - 1
    if stored.dtype != np.uint16 or not 0 < bits < 16:
        return stored
    return ((stored.clip(max=top).astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16)


def _own_units(values: np.ndarray, padding: np.ndarray | None, inverted: bool) -> np.ndarray:
    shown = values.astype(np.float32)
    body = shown if padding is None or padding.all() else shown[~padding]
    # What surrounds the image is no grey level of it: as dark as its darkest, or the range is spent on it.
    shown = shown.clip(body.min(), body.max())
    return body.max() + body.min() - shown if inverted else shown


def _through_table(values: np.ndarray, tables: Any, dataset: Any) -> np.ndarray:
    from pydicom.pixels import apply_voi

    dataset.VOILUTSequence = tables  # a functional group's: pydicom looks at the top alone
    return apply_voi(np.rint(values).astype(np.int64), dataset) / float(2 ** int(tables[0].LUTDescriptor[2]) - 1)


def _read(file: BinaryIO, path: Path, **options: Any) -> Any:
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("pydicom", "dicom", "Reading DICOM files") from None
    file.seek(0)
    start = file.read(_META)
    if _DEFLATED in start and start[132:138] == b"\x02\x00\x00\x00UL":
        file.seek(144 + int.from_bytes(start[140:144], "little"))  # behind the meta information, whose length it says
        _refuse_bomb(file, path)
    file.seek(0)
    return pydicom.dcmread(file, **options)


def _refuse_bomb(file: BinaryIO, path: Path) -> None:
    """Count what a deflated data set comes to, piece by piece: pydicom undoes the compression of all at once."""
    undo, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while (piece := undo.unconsumed_tail or file.read(2**16)) and not undo.eof:
        total += len(undo.decompress(piece, 2**20))
        if total > _MOST_DEFLATED:
            raise ImageError(
                f"{path}: this DICOM file is compressed as a whole, to more than {_MOST_DEFLATED:,} bytes: write it "
                "anew without that (dcmconv +te), or shrink the image"
            )


@contextmanager
def _errors_in_plain_words(path: Path) -> Iterator[None]:
    """pydicom's many errors on damaged or uncommon files, as one sentence."""
    try:
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ImportError:
        raise MissingExtraError("pydicom", "dicom", f"Reading the DICOM file {path}") from None
    try:
        yield
    except ImageError:
        raise
    except (InvalidDicomError, BytesLengthException, AttributeError, *DECODE_ERRORS) as error:
        # Of a compression that none of its plug-ins can undo, the lines after the first name what to install.
        reason = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())[:400]
        raise ImageError(f"{path}: this DICOM file cannot be decoded ({reason or type(error).__name__})") from None


@dataclass(frozen=True)
class Window:
    """Centre and width in rescaled units, and the function between (``LINEAR``, ``LINEAR_EXACT``, ``SIGMOID``)."""

    center: float
    width: float
    function: str = "LINEAR"

    def shown(self, values: np.ndarray) -> np.ndarray:
        """See values through the window (PS3.3 C.11.2.1.2), whole and fractional ones alike.

        Args:
            values: In rescaled units, of any shape.

        Returns:
            Brightness in [0, 1], float64, of the same shape.
        """
        values = values.astype(np.float64)
        if self.function == "SIGMOID":
            return expit(4 * (values - self.center) / self.width)
        if self.function == "LINEAR_EXACT":
            return ((values - self.center) / self.width + 0.5).clip(0, 1)
        if self.width == 1:  # a threshold: the ramp has no length
            return (values > self.center - 0.5).astype(np.float64)
        return ((values - (self.center - 0.5)) / (self.width - 1) + 0.5).clip(0, 1)


def rescaled(stored: np.ndarray, dataset: Any, number: int) -> np.ndarray:
    """The stored values of a frame in their units.

    Args:
        stored: Values as the file keeps them.
        dataset: The pydicom data set.
        number: Which frame, counted from 0.

    Returns:
        float64 of the same shape; ``stored`` itself where the file changes nothing.
    """
    for source in _sources(dataset, number, "PixelValueTransformationSequence"):
        if source is dataset and dataset.get("ModalityLUTSequence"):
            from pydicom.pixels import apply_modality_lut

            return np.asarray(apply_modality_lut(stored, dataset))
        slope, intercept = number_in(source, "RescaleSlope"), number_in(source, "RescaleIntercept")
        if slope is not None or intercept is not None:
            slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
            return stored if (slope, intercept) == (1, 0) else stored * np.float64(slope) + intercept
    return stored


def view_of(dataset: Any, number: int) -> Window | Any | None:
    """How a frame is to be seen.

    Args:
        dataset: The pydicom data set.
        number: Which frame, counted from 0.

    Returns:
        A ``Window``, the sequence of a table (which standard and viewers prefer), or None where the file says nothing
        that could be shown.
    """
    for source in _sources(dataset, number, "FrameVOILUTSequence"):
        tables = source.get("VOILUTSequence")
        if tables and tables[0].get("LUTDescriptor") and tables[0].get("LUTData"):
            return tables
        center, width = number_in(source, "WindowCenter"), number_in(source, "WindowWidth")
        function = str(source.get("VOILUTFunction") or "LINEAR").strip().upper()
        if center is not None and width is not None and (width >= 1 or (width > 0 and function != "LINEAR")):
            return Window(center, width, function)
    return None


def number_in(source: Any, keyword: str) -> float | None:
    """An element's first value.

    Args:
        source: A pydicom data set, or an item of a sequence.
        keyword: The element's keyword, such as ``WindowCenter``.

    Returns:
        The value; None where it is missing, empty or not finite.
    """
    value = source.get(keyword)
    if isinstance(value, Sequence) and not isinstance(value, str):  # several windows: the first is the default
        value = value[0] if len(value) else None
    if value is None or value == "":
        return None
    return float(value) if math.isfinite(float(value)) else None


def _sources(dataset: Any, number: int, group: str) -> Iterator[Any]:
    """Where to look, first what goes first."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    for item in (*per_frame[number : number + 1], *shared[:1]):
        if item.get(group):
            yield item.get(group)[0]
    yield dataset
