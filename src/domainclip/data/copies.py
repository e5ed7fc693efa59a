"""Copies of images, exact and near: a split that is made keeps them together, one that is given is looked through.

Exact copies are found in any number of files: only those of equal size are read. Near copies need every image decoded,
which is done up to ``NEAR_IMAGES`` and ``NEAR_BYTES`` (a minute at most on two cores); beyond, the notes say so, and
``domainclip data check`` looks at all.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from domainclip.data.checks.image_facts import inspect_images
from domainclip.data.checks.images import exact_groups, near_groups, pixel_findings
from domainclip.data.group_split import image_key, path_key
from domainclip.data.images.file_facts import FileFacts, file_status
from domainclip.data.images.image_file import image_file
from domainclip.data.records import ImageTextPair
from domainclip.errors import ImageError
from domainclip.waiting import said_while_waiting
from domainclip.words import counted

NEAR_IMAGES = 20_000
NEAR_BYTES = 2**30
LARGEST_NEAR_GROUP = 20
"""Of more images that look alike, each like some other, it is said and no more: parts under a fixed camera and plain
surfaces form chains of hundreds, and one group of half the rows could not be divided."""

_ENDS = 2**16


@dataclass(frozen=True)
class Copies:
    """Which images are copies of each other.

    Attributes:
        of: For an image that has copies (by ``image_key``) the name of their group.
        exact: Groups of files with equal content.
        near: Groups of images that look alike, of at most ``LARGEST_NEAR_GROUP``.
        notes: What was not looked at, or found and not used.
        pixels: What else was seen when the images were looked at: blank ones, and more channels than are shown.
        files: What was found of the files that were read whole, by their paths.
    """

    of: Mapping[str, str] = field(default_factory=dict)
    exact: Sequence[Sequence[Path]] = ()
    near: Sequence[Sequence[Path]] = ()
    notes: Sequence[str] = ()
    pixels: Sequence[str] = ()
    files: Mapping[Path, FileFacts] = field(default_factory=dict)

    def sentence(self) -> str | None:
        """What was found.

        Returns:
            A sentence without a stop; None where there are no copies.
        """
        parts = []
        for groups, what in (
            (self.exact, "equal to the byte"),
            (self.near, "alike (saved again, scaled, or of one thing twice)"),
        ):
            if groups:
                images = sum(map(len, groups))
                parts.append(f"{counted(images, 'image')} in {counted(len(groups), 'group')} are {what}")
        return ", ".join(parts) if parts else None


def find_copies(pairs: Iterable[ImageTextPair]) -> Copies:
    """Look for copies among the images of rows.

    Args:
        pairs: The rows. Images that are not there or cannot be read are no copies.

    Returns:
        What was found.
    """
    sizes: dict[Path, int] = {}
    for path in {image_key(pair): pair.image_path for pair in pairs}.values():
        try:
            sizes[path] = file_status(path)[0]
        except (OSError, ValueError):
            continue  # told where the image is wanted
    paths, notes, pixels = list(sizes), list[str](), list[str]()
    near: list[list[Path]] = []
    files: dict[Path, FileFacts] = {}
    if len(paths) <= NEAR_IMAGES and sum(sizes.values()) <= NEAR_BYTES:
        facts = list(inspect_images(paths))
        files = {fact.path: fact.file for fact in facts if fact.file is not None}
        pixels = [
            f"{found.detail}, first {found.examples[0]}. {found.advice.rstrip('.')}"
            for found in pixel_findings(facts)
            if found.severity == "warning"
        ]
        exact, near = exact_groups(facts), near_groups(facts)
        large = [group for group in near if len(group) > LARGEST_NEAR_GROUP]
        near = [group for group in near if len(group) <= LARGEST_NEAR_GROUP]
        if large:
            notes.append(
                f"{sum(map(len, large))} images look alike in {len(large)} groups of more than {LARGEST_NEAR_GROUP}, "
                "which are taken for different ones: where they show one thing, give them a group column"
            )
    else:
        exact = _equal_files(sizes, files)
        notes.append(
            f"{len(paths)} images of {sum(sizes.values()) / 2**30:.1f} GiB are too many to look for near copies here "
            "(equal files are found): `domainclip data check` looks for them"
        )
    of: dict[str, str] = {}
    for group in exact:
        name = min(map(path_key, group))
        of |= dict.fromkeys(map(path_key, group), name)
    for group in near:  # of equal files, one stands for all
        names = {of.get(key, key) for key in map(path_key, group)}
        merged = dict.fromkeys(names, min(names))
        of |= {key: merged[name] for key, name in of.items() if name in merged} | {
            key: merged[of.get(key, key)] for key in map(path_key, group)
        }
    return Copies(of, exact, near, notes, pixels, files)


def _equal_files(sizes: Mapping[Path, int], files: dict[Path, FileFacts]) -> list[list[Path]]:
    """Groups of files with equal content; a file is read as far as another one still looks the same. What is found of
    those read whole is added to ``files``."""

    def ends(path: Path) -> object:
        with image_file(path, whole=False) as file:
            found = hashlib.blake2b(file.read(_ENDS))
            file.seek(max(0, sizes[path] - _ENDS))
            found.update(file.read(_ENDS))
        return found.digest()

    def digest(path: Path) -> object:
        found = FileFacts.of(path)
        if found is None:
            return path  # like no other
        files[path] = found
        return found.digest

    groups = _parted([list(sizes)], lambda path: sizes[path])
    return _parted(_parted(groups, ends), digest)


def _parted(groups: Sequence[Sequence[Path]], value: Callable[[Path], object]) -> list[list[Path]]:
    """Those of each group that have a value in common."""
    alike: dict[tuple[int, object], list[Path]] = defaultdict(list)
    paths = ((number, path) for number, group in enumerate(groups) for path in group)
    for number, path in said_while_waiting(paths, sum(map(len, groups)), "Looking for equal images"):
        try:
            alike[number, value(path)].append(path)
        except (OSError, ImageError):
            continue  # told where the image is wanted
    return [found for found in alike.values() if len(found) > 1]
