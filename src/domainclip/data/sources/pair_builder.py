"""From raw rows to pairs: every loader hands its rows here, so that all skip the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from domainclip.data.records import ImageTextPair, PairList, SkippedRow
from domainclip.data.sources.image_folders import ImageFolders
from domainclip.errors import DataError
from domainclip.registry import nearest

MISSING_IMAGE = "missing image"
EMPTY_CAPTION = "empty caption"
MALFORMED_ROW = "malformed row"


def missing_field(kind: str, name: str, source: str, found: Iterable[str], option: str) -> DataError:
    """Make the error for a table without a column, or an entry without a key, that is needed.

    Args:
        kind: ``column`` or ``key``.
        name: The one that is missing.
        source: What the message calls the table.
        found: Those that are there; the one most like ``name`` is suggested.
        option: The setting that names another.

    Returns:
        The error, for the caller to raise.
    """
    found = list(found)
    guess = nearest(name, found)
    hint = f" (did you mean {guess!r}?)" if guess else ""
    listing = ", ".join(found) if found else "none"
    return DataError(f"Missing {name!r} {kind} in {source}: found {kind}s {listing}{hint}; name it with {option}=…")


def resolve_image_field(wanted: str, found: Iterable[str]) -> str:
    """Choose the image column: ``image`` and ``image_path`` stand for each other, other names for themselves.

    Args:
        wanted: The name asked for.
        found: Columns that are there.

    Returns:
        The name to use; ``wanted`` itself where neither is there.
    """
    found = set(found)
    if wanted not in found and wanted in {"image", "image_path"}:
        other = "image_path" if wanted == "image" else "image"
        return other if other in found else wanted
    return wanted


def text_or_none(value: Any) -> str | None:
    """A label or group as text.

    Args:
        value: A cell of a table.

    Returns:
        The text without space around it; None for null, NaN and blank.
    """
    if value is None or value != value:  # NaN is the only value that differs from itself
        return None
    return str(value).strip() or None


_NOT_UNICODE = "is no Unicode text (a byte that is no UTF-8, or half a character)"


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: names of folders and escapes of JSON may hold what cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class PairBuilder:
    """Collects pairs of one source.

    Args:
        source: The path used in errors; row names use its last part ("train.csv row 12").
        root: Relative image paths are resolved against it.
        strict: Whether the first unusable row is an error; otherwise it is skipped with its reason.
    """

    def __init__(self, source: Path | str, root: Path | str, strict: bool = False) -> None:
        self.source = str(source)
        self.name = Path(source).name
        self.strict = strict
        self._folders = ImageFolders(root)
        self._pairs = PairList(source=self.source)

    def skip(self, where: str, image: str, reason: str, kind: str = MALFORMED_ROW) -> None:
        """Skip a row that cannot be used.

        Args:
            where: The row's name, such as "row 12".
            image: Its image as the table has it, or empty.
            reason: Why it is skipped.
            kind: ``MISSING_IMAGE``, ``EMPTY_CAPTION`` or ``MALFORMED_ROW``.

        Raises:
            DataError: In strict mode.
        """
        row = SkippedRow(f"{self.name} {where}", image, reason, kind)
        if self.strict:
            raise DataError(f"{row}. Mend the row, or load with strict=False to skip such rows")
        self._pairs.skipped.append(row)

    def add(
        self, where: str, image: Any, caption: Any, label: Any = None, group: Any = None, discipline: Any = None
    ) -> None:
        """Add a row, or skip it where it cannot be used.

        Args:
            where: The row's name, such as "row 12".
            image: A path, relative to the root or absolute.
            caption: A text, or a list of texts that gives one pair each.
            label: The class; null, NaN and blank are None, here and below.
            group: What no split may separate.
            discipline: The part of the domain.

        Raises:
            DataError: In strict mode, for a row that cannot be used.
        """
        image = text_or_none(image) if isinstance(image, str | Path) else None
        if image is None:
            self.skip(where, "", "names no image file")
            return
        path = self._folders.find(image)
        if path is None:
            self.skip(where, image, f"image {image} is not there", MISSING_IMAGE)
            return
        captions = list(caption) if isinstance(caption, list | tuple) else [caption]
        if not captions:
            self.skip(where, image, "the list of captions is empty", EMPTY_CAPTION)
        for name, value in (("label", label), ("group", group), ("discipline", discipline)):
            if isinstance(value, float) and math.isinf(value):
                self.skip(where, image, f"the {name} is an infinite number")
                return
        label, group, discipline = text_or_none(label), text_or_none(group), text_or_none(discipline)
        for name, text in (("label", label), ("group", group), ("discipline", discipline)):
            if text is not None and not _is_unicode(text):
                self.skip(where, image, f"the {name} {text!r:.40} {_NOT_UNICODE}")
                return
        for text in captions:
            if text is None or text != text or (isinstance(text, str) and not text.strip()):
                self.skip(where, image, "the caption is empty", EMPTY_CAPTION)
            elif not isinstance(text, str):
                self.skip(where, image, f"the caption is {type(text).__name__} {text!r:.40}, not text")
            elif not _is_unicode(text):
                self.skip(where, image, f"the caption {text!r:.40} {_NOT_UNICODE}")
            else:
                self._pairs.append(ImageTextPair(path, text.strip(), label, group, discipline))

    def finish(self) -> PairList:
        """End the collection.

        Returns:
            The pairs, with the rows that were skipped.

        Raises:
            DataError: There is no pair; the first skipped rows are quoted.
        """
        if self._pairs:
            return self._pairs
        skipped = self._pairs.skipped
        if not skipped:
            raise DataError(f"No valid image-text pairs in {self.source}: it holds no rows")
        examples = "; ".join(str(row) for row in skipped[:3])
        raise DataError(
            f"No valid image-text pairs in {self.source}: all {len(skipped)} rows were skipped ({examples}"
            f"{'; …' if len(skipped) > 3 else ''}). Relative image paths are looked up in "
            f"{self._folders.root or '.'}; name another folder with image_root=…"
        )
