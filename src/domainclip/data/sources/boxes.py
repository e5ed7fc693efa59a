"""Data of object detection: boxes in images, which are neither captions nor classes of whole images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from domainclip.errors import DataError

_LOOKED_AT = 20
"""Files of a folder that might hold boxes."""
_START = 20_000  # bytes
_YOLO = re.compile(r"\s*(\d+([ \t]+[-+.\deE]+){4,}[ \t]*(\r?\n|$))+\s*")
"""A class's number, then centre, width and height or the corners of a polygon, in each line."""
_BESIDE = ("labels", "Annotations", "annotations")
_NO_LABELS = {"classes.txt", "train.txt", "val.txt", "test.txt", "obj.names"}


def is_yolo(text: str) -> bool:
    """Whether a text holds boxes or polygons as YOLO has them, and nothing else.

    Args:
        text: Of a file.

    Returns:
        True where each line is a class's number and four numbers or more.
    """
    return _YOLO.fullmatch(text) is not None


def refuse_boxes(folder: Path) -> None:
    """Raise an error where images have boxes of objects with them, for want of captions and classes.

    Args:
        folder: In which images lie that have no caption and no class. What lies beside it counts, too.

    Raises:
        DataError: There are boxes.
    """
    places = [folder]
    places += [above / name for above in list(folder.absolute().parents)[:2] for name in _BESIDE]
    for place in places:
        for path in islice(_candidates(place), _LOOKED_AT):
            kind = _kind(path)
            if kind is not None:
                raise DataError(f"{folder} holds data of object detection: {_told(path, kind)}")


def _told(path: Path, kind: str) -> str:
    found = f"{path} has {kind}"
    if kind.startswith("COCO"):
        return f"{found}, which can be read: give that file as the data, and the folder of its images with image_root=…"
    return (
        f"{found}, not a caption or a class of the whole image. Put the images into one folder per class; or write a "
        "table with a column 'image' and a column 'label' of what is in each image, with | between several"
    )


def _candidates(place: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(place):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if name.lower() in _NO_LABELS or suffix.lower() not in {".txt", ".xml", ".json"}:
                continue
            if suffix.lower() == ".txt" and "labels" not in Path(parent).parts and not _has_image(names, stem, name):
                continue
            yield Path(parent, name)


def _has_image(names: Sequence[str], stem: str, name: str) -> bool:
    return any(other.startswith(f"{stem}.") and other != name for other in names)


def _kind(path: Path) -> str | None:
    """What boxes a file holds; None for none."""
    if not path.is_file():  # a pipe, of which reading might never end
        return None
    try:
        with open(path, "rb") as file:
            start = file.read(_START).decode("utf-8", "replace")
    except OSError:
        return None  # told where it is needed
    if path.suffix.lower() == ".txt":
        whole = start if len(start) < _START else start[: start.rfind("\n") + 1]
        return "boxes as YOLO has them" if is_yolo(whole) else None
    if path.suffix.lower() == ".xml":
        return "boxes as Pascal VOC has them" if "<annotation" in start and "<object" in start else None
    if '"shapes"' in start and '"points"' in start:
        return "shapes as LabelMe has them"
    if '"image_id"' in start or ('"images"' in start and '"file_name"' in start):
        return "COCO's annotations"
    return None
