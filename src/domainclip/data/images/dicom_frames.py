"""What a DICOM file says of the numbers of one frame: their rescaling and the window they are to be seen through.

Files of one image say so at the top, enhanced multi-frame files in functional groups (PS3.3 C.7.6.16): in those of
the frame, else in those that all frames share. Empty elements, which many devices write, say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit


@dataclass(frozen=True)
class Window:
    """Centre and width in rescaled units, and the function between (``LINEAR``, ``LINEAR_EXACT``, ``SIGMOID``)."""

    center: float
    width: float
    function: str = "LINEAR"

    def shown(self, values: np.ndarray) -> np.ndarray:
        """Brightness in [0, 1] (PS3.3 C.11.2.1.2), of whole and fractional values alike."""
        values = values.astype(np.float64)
        if self.function == "SIGMOID":
            return expit(4 * (values - self.center) / self.width)
        if self.function == "LINEAR_EXACT":
            return ((values - self.center) / self.width + 0.5).clip(0, 1)
        if self.width == 1:  # a threshold: the ramp has no length
            return (values > self.center - 0.5).astype(np.float64)
        return ((values - (self.center - 0.5)) / (self.width - 1) + 0.5).clip(0, 1)


def rescaled(stored: np.ndarray, dataset: Any, number: int) -> np.ndarray:
    """The stored values of frame ``number`` in their units; ``stored`` itself where the file changes nothing."""
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
    """How frame ``number`` is to be seen: a ``Window``, the sequence of a table (which standard and viewers prefer), or
    None where the file says nothing that could be shown."""
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
    """The element's first value; None where it is missing, empty or no finite number."""
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
