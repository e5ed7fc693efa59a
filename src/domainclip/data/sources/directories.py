"""Directories of images without a table: ``captions.txt``, one ``.txt`` beside each image, a folder per
class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from domainclip.data.captions.from_labels import CLASS_CAPTION, caption_from_label
from domainclip.data.records import PairList
from domainclip.data.sources.captions_file import add_captions
from domainclip.data.sources.image_folders import is_image_name
from domainclip.data.sources.pair_builder import EMPTY_CAPTION, PairBuilder, RowValues
from domainclip.data.sources.rows import read_text
from domainclip.data.sources.split_names import SPLIT_NAMES
from domainclip.errors import DataError, MissingFileError

CAPTIONS_FILE = "captions.txt"


def visible_folders(folder: Path) -> list[Path]:
    """List a folder's folders, those left out whose names begin with a dot.

    Args:
        folder: An existing one.

    Returns:
        Their paths, sorted.
    """
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def are_split_folders(folders: list[Path]) -> bool:
    """Whether folders are splits (train/, val/, test/) rather than classes: all so named, and train among
    them.

    All must be, because ``train`` alone may well be a class of vehicles.

    Args:
        folders: All folders of a data set; capitals in their names do not matter.

    Returns:
        True for splits.
    """
    known = {name for names in SPLIT_NAMES.values() for name in names}
    names = {folder.name.lower() for folder in folders}
    return "train" in names and names <= known


def pairs_from_directory(folder: Path, caption_template: str | None = None, strict: bool = False) -> PairList:
    """See ``DatasetLoader.from_directory``.

    Args:
        folder: The directory.
        caption_template: For folders of classes; ``CLASS_CAPTION``, if left out.
        strict: Whether the first image or line that cannot be used is an error.

    Returns:
        The pairs; what cannot be used is in ``.skipped``.

    Raises:
        DataError: There is no such directory, it holds splits, or no pair is valid.
    """
    if not folder.is_dir():
        raise MissingFileError(f"Data directory not found: {folder}")
    if (folder / CAPTIONS_FILE).is_file():
        return _from_captions_file(folder, strict)
    images = list(walk_images(folder))
    if not images:
        raise DataError(
            f"No valid image-text pairs in {folder}: no images in it or its folders. A directory holds "
            "captions.txt, or images with a .txt beside each, or one folder of images per class"
        )
    if any(path.with_suffix(".txt").is_file() for path in images):
        return _from_sidecars(folder, images, strict)
    folders = visible_folders(folder)
    if are_split_folders(folders):
        raise DataError(
            f"{folder} holds splits ({', '.join(path.name for path in folders)}), not classes: load one of "
            "these folders, or the whole with load_splits"
        )
    return _from_class_folders(folder, images, caption_template or CLASS_CAPTION, strict)


def walk_images(folder: Path) -> Iterator[Path]:
    """The images of a folder and the folders in it, those left out whose names begin with a dot.

    Args:
        folder: An existing one.

    Returns:
        Their paths, sorted folder by folder, as they are asked for.
    """
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if is_image_name(name):
                yield Path(parent, name)


def _from_captions_file(folder: Path, strict: bool) -> PairList:
    builder = PairBuilder(folder / CAPTIONS_FILE, folder, strict)
    add_captions(builder, folder / CAPTIONS_FILE)
    return builder.finish()


def _from_sidecars(folder: Path, images: list[Path], strict: bool) -> PairList:
    builder = PairBuilder(folder, folder, strict)
    for image in images:
        name = str(image.relative_to(folder))
        sidecar = image.with_suffix(".txt")
        if not sidecar.is_file():
            builder.skip(name, name, f"no caption file {sidecar.name} beside it", EMPTY_CAPTION)
        elif sidecar.stat().st_size == 0:
            builder.skip(name, name, f"the caption file {sidecar.name} is empty", EMPTY_CAPTION)
        else:
            text = sidecar.read_bytes()
            caption = " ".join(read_text(sidecar).split()) if text.strip() else ""
            builder.add(name, RowValues(name, (caption,)))
    return builder.finish()


def _from_class_folders(folder: Path, images: list[Path], template: str, strict: bool) -> PairList:
    builder = PairBuilder(folder, folder, strict)
    for image in images:
        relative = image.relative_to(folder)
        if len(relative.parts) == 1:
            builder.skip(str(relative), str(relative), "lies in no class folder and has no caption", EMPTY_CAPTION)
            continue
        label = relative.parts[0].replace("_", " ").strip()
        builder.add(str(relative), RowValues(str(relative), (caption_from_label(template, label),), label))
    return builder.finish()
