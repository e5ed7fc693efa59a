"""Directories of images without a table: ``captions.txt``, one ``.txt`` beside each image, a folder per
class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from domainclip.data.records import PairList
from domainclip.data.sources.image_folders import is_image_name
from domainclip.data.sources.pair_builder import EMPTY_CAPTION, PairBuilder
from domainclip.data.sources.tables import read_text
from domainclip.errors import DataError

CAPTIONS_FILE = "captions.txt"
MOST_CAPTION_BYTES = 1_000_000
"""Of the caption beside an image: what is larger is something else."""
CLASS_CAPTION = "a photo of a {label}"
SPLIT_NAMES = {"train": ("train",), "validation": ("val", "validation", "valid", "dev"), "test": ("test",)}
"""The names under which each split of a data set is looked for, as a file's stem or as a folder."""


def caption_from_label(template: str, label: str) -> str:
    """Write a caption from a label.

    Args:
        template: With ``{label}`` or ``{}`` where the label goes.
        label: A class's name.

    Returns:
        The caption.

    Raises:
        DataError: The template has no place for the label.
    """
    if "{label}" not in template and "{}" not in template:
        raise DataError(f"Invalid caption_template {template!r}: it must contain {{label}}, where the label goes")
    return template.replace("{label}", label).replace("{}", label)


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
        raise DataError(f"Data directory not found: {folder}")
    if os.path.lexists(folder / CAPTIONS_FILE):  # what cannot be read is told, not passed over
        return _from_captions_file(folder, strict)
    images = list(_walk(folder))
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


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if is_image_name(name):
                yield Path(parent, name)


def _from_captions_file(folder: Path, strict: bool) -> PairList:
    path = folder / CAPTIONS_FILE
    # Many such directories keep the images one level down while the names in captions.txt do not say so.
    images = folder / "images"
    builder = PairBuilder(path, folder, strict)
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        name, tab, caption = line.partition("\t")
        if not tab:
            builder.skip(f"row {number}", "", "no tab between the image's name and its caption")
            continue
        name = name.strip()
        if images.is_dir() and not os.path.isfile(folder / name) and os.path.isfile(images / name):
            name = os.path.join("images", name)
        builder.add(f"row {number}", name, caption)
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
            try:
                text = read_text(sidecar, MOST_CAPTION_BYTES)
            except DataError as error:
                builder.skip(name, name, f"the caption file cannot be used: {error}", EMPTY_CAPTION)
            else:
                builder.add(name, name, " ".join(text.split()))
    return builder.finish()


def _from_class_folders(folder: Path, images: list[Path], template: str, strict: bool) -> PairList:
    builder = PairBuilder(folder, folder, strict)
    for image in images:
        relative = image.relative_to(folder)
        if len(relative.parts) == 1:
            builder.skip(str(relative), str(relative), "lies in no class folder and has no caption", EMPTY_CAPTION)
            continue
        label = relative.parts[0].replace("_", " ").strip()
        builder.add(str(relative), str(relative), caption_from_label(template, label), label)
    return builder.finish()
