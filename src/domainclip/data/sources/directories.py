"""Directories of images without a table: ``captions.txt``, one ``.txt`` beside each image, a folder per
class."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from pathlib import Path

from domainclip.data.captions.from_labels import CLASS_CAPTION, caption_from_label
from domainclip.data.records import PairList
from domainclip.data.sources.boxes import is_yolo, refuse_boxes
from domainclip.data.sources.captions_file import add_captions
from domainclip.data.sources.folder_contents import FolderContents, outputs_left_out
from domainclip.data.sources.pair_builder import EMPTY_CAPTION, PairBuilder, RowValues
from domainclip.data.sources.rows import read_text
from domainclip.data.sources.split_folders import MASK, split_folders, without_masks
from domainclip.errors import DataError, MissingFileError
from domainclip.words import counted

CAPTIONS_FILE = "captions.txt"
MOST_CAPTION_BYTES = 1_000_000
"""Of the caption beside an image: what is larger is something else."""
_SIDECARS = (".txt", ".caption", ".json")
_LOOKED_AT = 20
_LAYOUTS = "A directory holds captions.txt, or images with a .txt beside each, or one folder of images per class"
_WRAPPERS = frozenset({"image", "images", "img", "imgs", "jpegimages", "pictures", "photos", "data"})
"""Names of folders, in small letters, that say of no class."""


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
    if os.path.lexists(folder / CAPTIONS_FILE):  # what cannot be read is told, not passed over
        return _from_captions_file(folder, strict)
    splits = split_folders(folder)
    if splits:
        raise DataError(
            f"{folder} holds splits ({', '.join(path.name for path in splits.values())}), not classes: load one of "
            "these folders, or the whole with load_splits"
        )
    contents = FolderContents.of(folder)
    if not contents.images:
        kinds = Counter(reason for _, reason in contents.left_out)
        kinds.update("this was written by domainclip" for _ in contents.outputs)
        listing = "; ".join(f"{reason} ({count})" for reason, count in kinds.most_common(4))
        raise DataError(
            f"No valid image-text pairs in {folder}: no images in it or its folders{listing and f' ({listing})'}. "
            f"{_LAYOUTS}"
        )
    images, masks = without_masks(folder, contents.images)
    builder = PairBuilder(folder, folder, strict)
    sidecars = [path for path in map(_sidecar, images) if path is not None]
    strays = bool(sidecars) and _are_strays(folder, images, sidecars)
    if strays:
        builder.note(f"{counted(len(sidecars), 'file')} beside images, such as {sidecars[0].name}, are no captions")
    if sidecars and not strays and not _hold_boxes(sidecars):
        found = _add_with_sidecars(builder, folder, images)
    else:
        found = _add_by_class(builder, folder, images, caption_template or CLASS_CAPTION)
    if found < 2:
        refuse_boxes(folder)
    for path, reason in contents.left_out:
        name = str(path.relative_to(folder))
        builder.leave_out(name, reason, f"not an image that is read ({path.suffix.lower() or 'no suffix'})")
    builder.note(outputs_left_out(folder, contents.outputs))
    for path in masks:
        builder.leave_out(str(path.relative_to(folder)), "a mask, no image", MASK, harmless=True)
    try:
        return builder.finish()
    except DataError as error:
        raise DataError(f"{error}. {_LAYOUTS}") from None


def _from_captions_file(folder: Path, strict: bool) -> PairList:
    builder = PairBuilder(folder / CAPTIONS_FILE, folder, strict)
    add_captions(builder, folder / CAPTIONS_FILE)
    return builder.finish()


def _sidecar(image: Path) -> Path | None:
    """The file beside an image that holds its caption: a text, or what img2dataset writes."""
    names = [image.with_suffix(suffix) for suffix in _SIDECARS]
    names += [image.with_name(f"{image.name}{suffix}") for suffix in _SIDECARS]
    return next((path for path in names if path.is_file()), None)


def _hold_boxes(sidecars: list[Path]) -> bool:
    """Whether what lies beside images is a detector's labels: its first texts, empty ones apart, are nothing else."""
    found = 0
    for path in sidecars:
        if path.suffix != ".txt" or found == _LOOKED_AT:
            break
        try:
            text = read_text(path, limit=MOST_CAPTION_BYTES)
        except DataError:  # an image without objects has an empty file; others are told where captions are read
            continue
        if not is_yolo(text):
            return False
        found += 1
    return found > 0


def _are_strays(folder: Path, images: list[Path], sidecars: list[Path]) -> bool:
    """Whether the images are in folders of classes, and what lies beside some of them is something else: few texts, or
    JSON without captions."""
    classes = {image.relative_to(folder).parts[0] for image in images if image.parent != folder}
    if len(classes) < 2 or any(image.parent == folder for image in images):
        return False
    if 2 * len(sidecars) < len(images):
        return True
    shown = [path for path in sidecars if path.suffix == ".json"][:_LOOKED_AT]
    return len(shown) == min(len(sidecars), _LOOKED_AT) and not any(map(_has_caption, shown))


def _has_caption(path: Path) -> bool:
    try:
        return _caption_in(read_text(path, limit=MOST_CAPTION_BYTES)) is not None
    except DataError:
        return False


def _add_with_sidecars(builder: PairBuilder, folder: Path, images: list[Path]) -> int:
    """Add the captions beside images, and count them."""
    found = 0
    for image in images:
        name = str(image.relative_to(folder))
        sidecar = _sidecar(image)
        if sidecar is None:
            builder.skip(name, name, f"no caption file {image.with_suffix('.txt').name} beside it", EMPTY_CAPTION)
        elif sidecar.stat().st_size == 0:
            builder.skip(name, name, f"the caption file {sidecar.name} is empty", EMPTY_CAPTION)
        else:
            try:
                text = read_text(sidecar, limit=MOST_CAPTION_BYTES)
            except DataError as error:
                builder.skip(name, name, f"the caption file cannot be used: {error}", EMPTY_CAPTION)
                continue
            caption = _caption_in(text) if sidecar.suffix == ".json" else " ".join(text.split())
            if caption is None:
                builder.skip(name, name, f"{sidecar.name} beside it has no caption", EMPTY_CAPTION)
            else:
                builder.add(name, RowValues(name, (caption,)))
                found += 1
    return found


def _caption_in(text: str) -> str | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    values = (found.get(key) for key in ("caption", "text")) if isinstance(found, dict) else ()
    return next((value for value in values if isinstance(value, str) and value.strip()), None)


def _add_by_class(builder: PairBuilder, folder: Path, images: list[Path], template: str) -> int:
    """Add images with their folders as classes, and count these."""
    top, classes = _folder_of_classes(folder, images), set[str]()
    if top != folder:
        builder.note(f"the folders in {top.relative_to(folder).as_posix()}/ are read as classes")
    if inner := _same_inside(top, images):
        builder.note(
            f"each class holds the same folders ({', '.join(inner[:4])}{', …' * (len(inner) > 4)}): where these are "
            "the classes, put all images of one into one folder"
        )
    groups = _folders_of_groups([image.relative_to(top).parts for image in images])
    if groups:
        some = ", ".join(sorted(groups)[:3])
        builder.note(
            f"the {len(groups)} folders in the classes' folders ({some} …) are read as groups, such as "
            "patients or parts: one is never divided between training and test"
        )
    for image in images:
        relative, below = image.relative_to(folder), image.relative_to(top)
        if len(below.parts) == 1:
            builder.skip(str(relative), str(relative), "lies in no class folder and has no caption", EMPTY_CAPTION)
            continue
        label = below.parts[0].replace("_", " ").strip()
        classes.add(label)
        group = below.parts[1] if groups else None
        builder.add(str(relative), RowValues(str(relative), (caption_from_label(template, label),), label, group))
    return len(classes)


def _folders_of_groups(below: list[tuple[str, ...]]) -> set[str]:
    """The folders within the folders of classes, where they are numbered as patients, parts and specimens are; none
    where the images lie in the classes' own folders, or those within them are kinds with names."""
    groups = {parts[1] for parts in below if len(parts) > 2}
    classes = {parts[0] for parts in below if len(parts) > 1}
    nested = all(len(parts) > 2 for parts in below) and all(any(map(str.isdigit, name)) for name in groups)
    return groups if nested and len({parts[:2] for parts in below}) >= 2 * len(classes) else set()


def _same_inside(top: Path, images: list[Path]) -> list[str]:
    """The folders, two at least, that all classes have in common where no image lies outside of such; else none."""
    inside: dict[str, set[str]] = {}
    for image in images:
        parts = image.relative_to(top).parts
        if len(parts) < 3:
            return []
        inside.setdefault(parts[0], set()).add(parts[1])
    first, *others = inside.values()
    return sorted(first) if others and len(first) > 1 and all(other == first for other in others) else []


def _folder_of_classes(folder: Path, images: list[Path]) -> Path:
    """The folder whose folders are classes: of a set that is wrapped into one more folder, that one. A single class is
    not taken for such a folder, unless by a name such as ``images``."""
    parts = [image.relative_to(folder).parts for image in images]
    first, last = min(parts)[:-1], max(parts)[:-1]  # of sorted paths these differ earliest
    shared = [one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
    if all(len(each) > len(shared) + 1 for each in parts):  # folders, each of them a class, are all that lies there
        return folder.joinpath(*shared)
    wrappers = itertools.takewhile(lambda name: name.lower() in _WRAPPERS, shared)
    return folder.joinpath(*wrappers)
