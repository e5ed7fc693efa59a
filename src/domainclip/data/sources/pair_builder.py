"""From raw rows to pairs: every loader hands its rows here, so that all skip the same rows."""

from __future__ import annotations

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
    """The error for a table without a column, or an entry without a key (``kind``), that is needed."""
    found = list(found)
    guess = nearest(name, found)
    hint = f" (did you mean {guess!r}?)" if guess else ""
    listing = ", ".join(found) if found else "none"
    return DataError(f"Missing {name!r} {kind} in {source}: found {kind}s {listing}{hint}; name it with {option}=…")


def resolve_image_field(wanted: str, found: Iterable[str]) -> str:
    """The name of the image column: ``image`` and ``image_path`` stand for each other, other names for
    themselves."""
    found = set(found)
    if wanted not in found and wanted in {"image", "image_path"}:
        other = "image_path" if wanted == "image" else "image"
        return other if other in found else wanted
    return wanted


def text_or_none(value: Any) -> str | None:
    """A label or group as text; None for null, NaN and blank."""
    if value is None or value != value:  # NaN is the only value that differs from itself
        return None
    return str(value).strip() or None


class PairBuilder:
    """Collects pairs of one source.

    ``source`` is the path used in errors; row names use its last part ("train.csv row 12"). In ``strict``
    mode the first unusable row raises ``DataError``; otherwise it is skipped with its reason.
    """

    def __init__(self, source: Path | str, root: Path | str, strict: bool = False) -> None:
        self.source = str(source)
        self.name = Path(source).name
        self.strict = strict
        self._folders = ImageFolders(root)
        self._pairs = PairList(source=self.source)

    def skip(self, where: str, image: str, reason: str, kind: str = MALFORMED_ROW) -> None:
        row = SkippedRow(f"{self.name} {where}", image, reason, kind)
        if self.strict:
            raise DataError(f"{row}. Mend the row, or load with strict=False to skip such rows")
        self._pairs.skipped.append(row)

    def add(
        self, where: str, image: Any, caption: Any, label: Any = None, group: Any = None, discipline: Any = None
    ) -> None:
        """One row: ``caption`` is a text, or a list of texts that gives one pair each."""
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
        label, group, discipline = text_or_none(label), text_or_none(group), text_or_none(discipline)
        for text in captions:
            if text is None or text != text or (isinstance(text, str) and not text.strip()):
                self.skip(where, image, "the caption is empty", EMPTY_CAPTION)
            elif not isinstance(text, str):
                self.skip(where, image, f"the caption is {type(text).__name__} {text!r:.40}, not text")
            else:
                self._pairs.append(ImageTextPair(path, text.strip(), label, group, discipline))

    def finish(self) -> PairList:
        """The pairs. Raises ``DataError`` where there is none, quoting the first skipped rows."""
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
