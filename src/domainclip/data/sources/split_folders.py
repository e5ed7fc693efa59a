"""Folders that are splits, and those that hold masks: the layouts of MVTec, ImageNet and their like."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from domainclip.data.sources.boxes import refuse_boxes
from domainclip.data.sources.folder_contents import FolderContents, visible_folders
from domainclip.data.sources.split_names import SPLIT_NAMES, only_one, split_of
from domainclip.errors import DataError

_MASKS = frozenset({"ground_truth", "groundtruth", "masks", "segmentations", "segmentation_masks", "annotations"})
_MASKS_BESIDE_IMAGES = frozenset({"mask", "gt", "label", "labels", "annotation", "segmentation"})
_IMAGES = frozenset({"image", "images", "img", "imgs"})

_MASK_NAME = re.compile(
    r"(.+)[-_](?:masks?|seg|segmentation|groundtruth|gt)(?:[-_]?\d{1,3})?", re.IGNORECASE | re.DOTALL
)
"""What a mask is called beside ``x.png``: ``x_mask.png``, ``x_mask_1.png``, ``x_segmentation.png``."""

MASK = "mask"
"""Why a file is left out, for counting."""


def mask_folders(folders: Sequence[Path]) -> list[Path]:
    """Those of some folders that hold masks, by their names.

    Args:
        folders: All that lie beside each other.

    Returns:
        Those named ``ground_truth``, ``masks`` or the like, where there are others; a folder ``mask`` or ``labels``
        only beside one that is named ``images``, since it may well be a class elsewhere.
    """
    names = {path: path.name.lower().replace("-", "_").replace(" ", "_") for path in folders}
    known = _MASKS | (_MASKS_BESIDE_IMAGES if _IMAGES & set(names.values()) else frozenset())
    found = [path for path in folders if names[path] in known]
    return found if len(found) < len(folders) else []


def split_folders(folder: Path) -> dict[str, Path]:
    """The splits that a folder's folders are: all so named (``train``, ``Training``, ``val2017`` …), masks apart.

    Args:
        folder: An existing one.

    Returns:
        The folder of each split, in the order of splits; none where no folder is one.

    Raises:
        DataError: Only some folders are splits; two folders name one split; or each folder holds splits of its own.
    """
    folders = visible_folders(folder)
    rest = [path for path in folders if path not in mask_folders(folders)]
    found: dict[str, list[Path]] = {}
    for path in rest:
        split = split_of(path.name)
        if split is not None:
            found.setdefault(split, []).append(path)
    named = [path for paths in found.values() for path in paths]
    others = [path for path in rest if path not in named]
    if not named:
        if rest and all(_holds_splits(path) for path in rest):
            for path in rest:
                if path.name.lower() in _IMAGES:
                    refuse_boxes(folder)
            raise DataError(
                f"{folder} holds {_listed(rest)}, {'a data set with its own splits' if len(rest) == 1 else 'data sets'}"
                f"{'' if len(rest) == 1 else ' with splits of their own'}: name one of them, such as {rest[0]}"
            )
        return {}
    if others:
        if len(named) == 1 and not visible_folders(named[0]):
            return {}  # one class that is called so, among others: a train among vehicles
        raise DataError(
            f"In {folder} the folders {_listed(named)} are named as splits and {_listed(others)} are not: put the "
            f"images of all classes into folders within the splits, or move {_listed(others)} elsewhere. If "
            f"{_listed(named)} should be a class, rename it, or give a table with a column of labels"
        )
    one = {split: _innermost(only_one(folder, paths, split), split) for split, paths in found.items()}
    return {split: one[split] for split in SPLIT_NAMES if split in one}


def _innermost(folder: Path, split: str) -> Path:
    """A split's folder, or the folder of the same name that is all it holds (``seg_train/seg_train``)."""
    while len(inside := visible_folders(folder)) == 1 and split_of(inside[0].name) == split:
        folder = inside[0]
    return folder


def without_masks(folder: Path, images: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Tell images from masks: what lies in a folder of masks, and ``x_mask.png`` beside ``x.png``.

    Args:
        folder: In which the images lie.
        images: Of it and of the folders in it.

    Returns:
        The images and the masks, in their order.
    """
    stems = {os.path.splitext(path)[0] for path in images}
    known: dict[Path, set[Path]] = {}

    def is_mask(path: Path) -> bool:
        stem = os.path.splitext(path)[0]
        beside = _MASK_NAME.fullmatch(stem)
        if beside is not None and beside[1] in stems:
            return True
        for part in path.relative_to(folder).parents:
            place = folder / part
            if place != folder and place.parent not in known:
                known[place.parent] = set(mask_folders(visible_folders(place.parent)))
            if place != folder and place in known[place.parent]:
                return True
        return False

    masks = {path for path in images if is_mask(path)}
    return [path for path in images if path not in masks], [path for path in images if path in masks]


def masks_beside(folder: Path) -> list[Path]:
    """The masks that lie beside a folder's splits.

    Args:
        folder: With a folder for each split.

    Returns:
        Images of its folders of masks.
    """
    return [image for place in mask_folders(visible_folders(folder)) for image in FolderContents.of(place).images]


def _holds_splits(folder: Path) -> bool:
    splits = {split_of(path.name) for path in visible_folders(folder)}
    return "train" in splits and len(splits - {None}) > 1


def _listed(folders: Sequence[Path]) -> str:
    names = [f"{path.name}/" for path in folders[:4]]
    return ", ".join(names) + (f" and {len(folders) - 4} more" if len(folders) > 4 else "")
