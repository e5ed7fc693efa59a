"""An error analysis as one HTML file that needs nothing else: images inside, no script, nothing fetched."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from domainclip.data.images.reader import read_image
from domainclip.errors import ConfigurationError, ImageError
from domainclip.evaluation.error_analysis import Case, ErrorAnalysis, Section
from domainclip.files import require_writable, write_text
from domainclip.reports.plots.examples import Reader
from domainclip.reports.render import render

FILE = "error_analysis.html"
_SIZE, _SMALL_SIZE = 208, 80
"""Longest side of a thumbnail in pixels, on a card and in the table of classes."""
_QUALITY = 82
_LONG = 150
"""Characters of a caption that are shown before it has to be unfolded."""


def check_place(folder: Path) -> None:
    """Make sure, before any work, that the page can be written and replaces nothing but an earlier one.

    Args:
        folder: Where it is to go.

    Raises:
        ConfigurationError: It cannot, or it would.
    """
    require_writable(folder, "The error analysis's folder")
    path = Path(folder) / FILE
    if os.path.lexists(path) and b'name="generator" content="domainclip"' not in path.read_bytes()[:1000]:
        raise ConfigurationError(f"{path} is no error analysis of ours and would be replaced: give another folder")


def write_error_analysis(folder: Path, analysis: ErrorAnalysis, read: Reader = read_image) -> Path:
    """Write ``error_analysis.html`` into ``folder``.

    Args:
        folder: Where to.
        analysis: The cases to show.
        read: Gives the images as they are shown.

    Returns:
        The page's path.
    """
    path = Path(folder) / FILE
    write_text(path, error_analysis_html(analysis, read))
    return path


def error_analysis_html(analysis: ErrorAnalysis, read: Reader = read_image) -> str:
    """The text of the page.

    Args:
        analysis: The cases to show.
        read: Gives the images; one that it cannot read is replaced by what is wrong with it.

    Returns:
        The page.
    """
    thumbnails = _Thumbnails(analysis, read)
    sections: dict[str, list[tuple[str, Section]]] = {}
    for index, section in enumerate(analysis.sections):
        sections.setdefault(section.of, []).append((f"s{index}", section))
    return render(
        "error_analysis.html.j2",
        title=analysis.title,
        style="error_analysis.css.j2",
        analysis=analysis,
        sections=sections,
        thumbnail=thumbnails.of,
        name_of=thumbnails.name,
        probability=_percent,
        cut=_cut,
    )


@dataclass(frozen=True)
class Thumbnail:
    """A small image as a data URI, or what is wrong with the file."""

    uri: str = ""
    problem: str = "cannot be read"


class _Thumbnails:
    """Small images, each file read once a size."""

    def __init__(self, analysis: ErrorAnalysis, read: Reader) -> None:
        self.read = read
        self._made: dict[tuple[Path, int], Thumbnail] = {}
        folders = {
            os.path.dirname(os.path.abspath(case.image_path)) for section in analysis.sections for case in section.cases
        }
        # Names from where the data begin: what a reader needs, without the folders of the machine it was made on.
        try:
            self._root = os.path.commonpath(folders)
        except ValueError:  # no image, or images on two drives
            self._root = ""

    def name(self, path: Path) -> str:
        return os.path.relpath(path, self._root) if self._root else path.name

    def of(self, case: Case, small: bool) -> Thumbnail:
        size = _SMALL_SIZE if small else _SIZE
        key = (case.image_path, size)
        if key not in self._made:
            try:
                self._made[key] = Thumbnail(_data_uri(self.read(case.image_path), size))
            except ImageError as error:
                said = str(error).replace(str(case.image_path), case.image_path.name)
                self._made[key] = Thumbnail() if small else Thumbnail(problem=said)
        return self._made[key]


def _data_uri(pixels: np.ndarray, size: int) -> str:
    image = Image.fromarray(pixels)
    # Half as large again as shown, for screens of high density.
    image.thumbnail((size * 3 // 2, size * 3 // 2), Image.Resampling.LANCZOS, reducing_gap=2.0)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")


def _percent(fraction: float) -> str:
    """A probability is never rounded to certainty."""
    if 0.9995 <= fraction < 1:
        return "> 99.9%"
    if 0 < fraction < 0.0005:
        return "< 0.1%"
    return f"{fraction:.1%}"


def _cut(caption: str) -> tuple[str, str]:
    """A caption in one line: all of it, or of a long one the beginning and the rest, which has to be unfolded."""
    text = " ".join(caption.split())
    if len(text) <= _LONG:
        return text, ""
    place = text.rfind(" ", _LONG // 2, _LONG)
    place = place if place > 0 else _LONG
    return text[:place], text[place:].lstrip()
