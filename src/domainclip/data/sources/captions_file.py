"""Files of captions alone: an image's name and a caption a line, as Flickr8k, Flickr30k and many others have them."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path

from domainclip.data.sources.folder_contents import is_image_name, visible_folders
from domainclip.data.sources.pair_builder import PairBuilder, RowValues
from domainclip.data.sources.rows import read_text

_HEADER = re.compile(r"(image|file|img)[_ ]?(name|path|id|file)?", re.IGNORECASE)
_NUMBER = re.compile(r"#\d+$")
"""What follows an image's name where it has several captions: ``1000.jpg#0``."""


def add_captions(builder: PairBuilder, path: Path) -> None:
    """Add each line of a file of captions.

    Between name and caption stands a tab, or in the whole file a comma, after which the caption may be in quotation
    marks. A first line that names the columns is left out, and so is the number of a caption (``name.jpg#0``).

    Args:
        builder: Gets the rows. Images lie beside the file, or in a folder beside it (``Images``).
        path: The file.

    Raises:
        DataError: The file cannot be read, or in strict mode a line cannot be used.
    """
    notes: list[str] = []
    text = read_text(path, notes)
    for note in notes:
        builder.note(note)
    folders = _Folders(path.parent)
    for number, name, caption in _lines(text):
        if caption is None:
            builder.skip(f"row {number}", "", "no tab between the image's name and its caption")
        elif number > 1 or not _HEADER.fullmatch(name):
            builder.add(f"row {number}", RowValues(folders.find(name), (caption,)))


def _lines(text: str) -> Iterator[tuple[int, str, str | None]]:
    """Each line's number from 1, image and caption; None for a line without a separator."""
    lines = text.split("\n")
    by_commas = "\t" not in text and any("," in line for line in lines[:2])
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, separator, caption = line.partition("," if by_commas else "\t")
        if separator and by_commas and caption.lstrip().startswith('"'):
            caption = ",".join(next(csv.reader([caption.strip()], skipinitialspace=True)))
        yield number, name.strip().strip('"'), caption if separator else None


class _Folders:
    """Finds the folder that holds an image: many keep the images one level down while the file does not say so."""

    def __init__(self, folder: Path) -> None:
        inner = visible_folders(folder)
        inner.sort(key=lambda entry: entry.name.lower() != "images")
        self._root, self._names = folder, [entry.name for entry in inner]

    def find(self, name: str) -> str:
        """The image's path below the file's folder; the name itself where it is not there."""
        if _NUMBER.search(name) and is_image_name(_NUMBER.sub("", name)) and not os.path.isfile(self._root / name):
            name = _NUMBER.sub("", name)
        if os.path.isfile(self._root / name):
            return name
        there = (os.path.join(inner, name) for inner in self._names)
        return next((path for path in there if os.path.isfile(self._root / path)), name)
