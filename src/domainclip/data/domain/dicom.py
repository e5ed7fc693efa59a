"""DICOM files to grey levels or colours, by pydicom: rescale, window, photometric interpretation."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from domainclip.config.domain_images import ImagePreprocessing
from domainclip.data.domain.pages import chosen_page
from domainclip.errors import MissingExtraError, PictureError

_FAR = 1e12
"""A stored value beyond any window: what a window makes of it is its black or white."""


def is_dicom(start: bytes) -> bool:
    """Whether these first bytes (132 at least) are a DICOM file's (PS3.10, section 7.1)."""
    return start[128:132] == b"DICM"


def dicom_size(source: bytes | Path, path: Path) -> tuple[int, int, int, str]:
    """Width, height, frames and photometric interpretation, without decoding. Raises ``PictureError``."""
    with _told_plainly(path):
        dataset = _read(source, stop_before_pixels=True)
        if "Rows" not in dataset or "Columns" not in dataset:
            raise PictureError(f"{path}: a DICOM file without a picture ({dataset.get('Modality', 'no modality')})")
        frames = int(dataset.get("NumberOfFrames") or 1)
        return int(dataset.Columns), int(dataset.Rows), frames, str(dataset.get("PhotometricInterpretation", ""))


def read_dicom(data: bytes, path: Path, settings: ImagePreprocessing) -> np.ndarray:
    """The chosen frame: ``[h, w]`` grey, or ``[h, w, 3]`` RGB.

    Grey is uint8 where a window says what is black and white, and float32 in the file's units (Hounsfield in CT) where
    none does. MONOCHROME1, where low values are to be seen bright, comes inverted either way. Raises ``PictureError``
    for what cannot be decoded, ``MissingExtraError`` without pydicom.
    """
    with _told_plainly(path):
        from pydicom.pixels import apply_color_lut, pixel_array

        dataset = _read(io.BytesIO(data))
        frames = int(dataset.get("NumberOfFrames") or 1)

        def frame(number: int) -> np.ndarray:
            return pixel_array(dataset, index=number)

        values = chosen_page(frame, frames, settings, path)
        kind = str(dataset.get("PhotometricInterpretation", ""))
        if kind == "PALETTE COLOR":
            values = apply_color_lut(values.astype(dataset_type(dataset)), dataset)
            return (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values
        if values.ndim == 3:
            return values
        return _grey_levels(values, dataset, settings, inverted=kind == "MONOCHROME1")


def dataset_type(dataset: Any) -> Any:
    """The type of the file's stored values (a mean of frames is fractional, and no index into a palette)."""
    return np.uint8 if int(dataset.get("BitsAllocated", 16)) <= 8 else np.uint16


def _grey_levels(values: np.ndarray, dataset: Any, settings: ImagePreprocessing, inverted: bool) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

    padding = values == dataset.PixelPaddingValue if dataset.get("PixelPaddingValue") is not None else None
    levels = np.asarray(apply_modality_lut(values, dataset))
    if settings.window_center is not None:
        dataset.WindowCenter, dataset.WindowWidth = settings.window_center, settings.window_width
        dataset.pop("VOILUTFunction", None)
        dataset.pop("VOILUTSequence", None)
    windowed = settings.window_center is not None or settings.dicom_window == "file"
    if windowed and "VOILUTSequence" in dataset:
        table = dataset.VOILUTSequence[0]
        shown = apply_voi_lut(levels.astype(np.int64), dataset) / float(2 ** int(table.LUTDescriptor[2]) - 1)
    elif windowed and "WindowCenter" in dataset and "WindowWidth" in dataset:
        # The output's range depends on bits, sign and rescaling: what the window makes of the extremes tells it.
        black, white = apply_windowing(np.array([-_FAR, _FAR]), dataset)
        shown = (apply_windowing(levels.astype(np.float64), dataset) - black) / (white - black)
    else:
        shown = levels.astype(np.float32)
        body = shown if padding is None or padding.all() else shown[~padding]
        # What surrounds the picture is no grey level of it: as dark as its darkest, or the range is spent on it.
        shown = shown.clip(body.min(), body.max())
        return body.max() + body.min() - shown if inverted else shown
    shown = 1 - shown if inverted else shown
    if padding is not None:
        shown[padding] = 0.0
    return (shown.clip(0, 1) * 255).round().astype(np.uint8)


def _read(source: Any, **options: Any) -> Any:
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("pydicom", "dicom", "Reading DICOM files") from None
    return pydicom.dcmread(io.BytesIO(source) if isinstance(source, bytes) else source, **options)


@contextmanager
def _told_plainly(path: Path) -> Iterator[None]:
    """pydicom's many errors on damaged or uncommon files, as one sentence; its warnings are not the user's business."""
    try:
        import pydicom.errors
    except ImportError:
        raise MissingExtraError("pydicom", "dicom", f"Reading the DICOM file {path}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except PictureError:
        raise
    except (
        pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException, OSError, ValueError, AttributeError,
        RuntimeError, KeyError, IndexError, TypeError, EOFError, ArithmeticError, struct.error,
    ) as error:  # fmt: skip
        # Of a compression that none of its plug-ins can undo, the lines after the first name what to install.
        reason = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())[:400]
        raise PictureError(f"{path}: this DICOM file cannot be decoded ({reason or type(error).__name__})") from None
