"""From raw rows to pairs: every loader hands its rows here, so that all skip the same rows."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainclip.data.records import ImageTextPair, PairList, SkippedRow
from domainclip.data.sources.cells import captions_in_cell, is_missing, is_place_per_class, labels_in_cell, text_or_none
from domainclip.data.sources.image_folders import ImageFolders
from domainclip.data.sources.split_names import SPLIT_NAMES, split_of
from domainclip.errors import DataError
from domainclip.words import counted

MISSING_IMAGE = "missing image"
EMPTY_CAPTION = "empty caption"
MALFORMED_ROW = "malformed row"

_NOT_UNICODE = "is no Unicode text (a byte that is no UTF-8, or half a character)"


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: names of folders and escapes of JSON may hold what cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class RowValues:
    """The cells of a row as they stand, null where there is none; ``without_caption`` says why a caption is missing."""

    image: Any
    captions: tuple[Any, ...] = ()
    label: Any = None
    group: Any = None
    discipline: Any = None
    split: Any = None
    proposed: tuple[tuple[str, Any], ...] = ()
    without_caption: str = "the caption is empty"


def _is_empty(text: Any) -> bool:
    return text is None or text != text or (isinstance(text, str) and not text.strip())


def _says_nothing(text: Any) -> bool:
    return _is_empty(text) or (isinstance(text, str) and is_missing(text.strip(), loosely=True))


class PairBuilder:
    """Collects pairs of one source.

    Args:
        source: The path used in errors; row names use its last part ("train.csv row 12").
        root: Relative image paths are resolved against it.
        strict: Whether the first unusable row is an error; otherwise it is skipped with its reason.
        text_needed: Whether a row without a caption is unusable; otherwise its caption is empty.
    """

    def __init__(self, source: Path | str, root: Path | str, strict: bool = False, text_needed: bool = True) -> None:
        self.text_needed = text_needed
        self.source = str(source)
        self.name = Path(source).name
        self.strict = strict
        self._folders = ImageFolders(root)
        self._pairs = PairList(source=self.source)
        self._missing: dict[str, Counter[str]] = defaultdict(Counter)
        self._lists = 0
        self._proposed: dict[str, set[str]] = defaultdict(set)
        self._rows = 0
        self._unsplit: list[tuple[str, str]] = []
        self._suffixes: list[tuple[ImageTextPair, str, str]] = []

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

    def leave_out(self, name: str, reason: str, kind: str, harmless: bool = False) -> None:
        """Count a file that lies among the images and is none that is read.

        Args:
            name: Its path within the folder.
            reason: Why it is left out.
            kind: The reason in a fixed phrase, for counting.
            harmless: Whether nobody can have meant it for an image.

        Raises:
            DataError: In strict mode, unless it is harmless.
        """
        if harmless:
            self._pairs.skipped.append(SkippedRow(f"{self.name} {name}", name, reason, kind))
        else:
            self.skip(name, name, reason, kind)

    def add(self, where: str, row: RowValues) -> None:
        """Add a row, or skip it where it cannot be used.

        Args:
            where: The row's name, such as "row 12".
            row: Its cells. The image is a path, relative to the root or absolute. A cell of captions or labels may
                hold a list; what is null, NaN, blank or a word for that is missing.

        Raises:
            DataError: In strict mode, for a row that cannot be used.
        """
        image = text_or_none(row.image) if isinstance(row.image, str | Path) else None
        if image is None:
            self.skip(where, "", "names no image file")
            return
        path = self._folders.find(image)
        if path is None:
            self.skip(where, image, self._folders.reason(image), MISSING_IMAGE)
            return
        if is_place_per_class(row.label):
            reason = f"the label {row.label!s:.40} holds 0 or 1 for each class: write the names of those that apply"
            self.skip(where, image, reason)
            return
        labels = [label for label in labels_in_cell(row.label) if not self._is_missing("label", label)]
        group, discipline = text_or_none(row.group), text_or_none(row.discipline)
        if group is not None and self._is_missing("group", group, loosely=True):
            group = None
        split = text_or_none(row.split)
        if split is None or is_missing(split, loosely=True):
            split = None
            self._unsplit.append((where, image))
        for what, cell in (("label", row.label), ("group", row.group), ("discipline", row.discipline)):
            if isinstance(cell, float) and math.isinf(cell):
                self.skip(where, image, f"the {what} is an infinite number")
                return
        names = [*(("label", each) for each in labels), ("group", group), ("discipline", discipline), ("split", split)]
        for what, name in names:
            if name is not None and not _is_unicode(name):
                self.skip(where, image, f"the {what} {name!r:.40} {_NOT_UNICODE}")
                return
        self._propose(row)
        label = labels[0] if len(labels) == 1 else None
        several = tuple(labels) if len(labels) > 1 else None
        for text in self._captions(row.captions):
            if not self.text_needed and _says_nothing(text):
                text = ""
            elif _is_empty(text):
                self.skip(where, image, row.without_caption, EMPTY_CAPTION)
                continue
            elif not isinstance(text, str):
                self.skip(where, image, f"the caption is {type(text).__name__} {text!r:.40}, not text")
                continue
            elif not _is_unicode(text):
                self.skip(where, image, f"the caption {text!r:.40} {_NOT_UNICODE}")
                continue
            elif is_missing(text.strip(), loosely=True):
                self.skip(where, image, f"the caption is {text.strip()!r}, a word for a missing one", EMPTY_CAPTION)
                continue
            pair = ImageTextPair(path, text.strip(), label, group, discipline, split, several)
            self._pairs.append(pair)
            if image in self._folders.guessed.get(path, ()):
                self._suffixes.append((pair, where, image))

    def _captions(self, cells: tuple[Any, ...]) -> list[Any]:
        """The captions of a row's cells, None for a cell without any. Of several columns, some may be empty."""
        found: list[Any] = []
        for cell in cells:
            captions = captions_in_cell(cell)
            self._lists += isinstance(cell, str) and captions != [cell]
            found += captions or [None]
        return ([text for text in found if not _is_empty(text)] or [None]) if len(cells) > 1 else found

    def note(self, sentence: str) -> None:
        """Add what was guessed.

        Args:
            sentence: It, without a stop; nothing is added where it is empty.
        """
        if sentence and sentence not in self._pairs.notes:
            self._pairs.notes.append(sentence)

    def _is_missing(self, what: str, text: str, loosely: bool = False) -> bool:
        if not is_missing(text, loosely):
            return False
        self._missing[what][text] += 1
        return True

    def _propose(self, row: RowValues) -> None:
        self._rows += 1
        for column, cell in row.proposed:
            value = text_or_none(cell)
            if value is not None and not is_missing(value, loosely=True):
                self._proposed[column].add(value)

    def finish(self, split_column: tuple[str, bool] | None = None) -> PairList:
        """End the collection.

        Args:
            split_column: The column that the rows' splits are from, and whether it is surely one.

        Returns:
            The pairs, with the rows that were skipped.

        Raises:
            DataError: There is no pair, and the first skipped rows are quoted; or the column of splits has values that
                name none.
        """
        if self._folders.contested:
            self._drop_contested()
        if self._suffixes:
            self._drop_guesses()
        if split_column is not None and self._pairs:
            self._name_splits(*split_column)
        if self._pairs:
            self._tell()
            return self._pairs
        skipped = self._pairs.skipped
        if not skipped:
            raise DataError(f"No valid image-text pairs in {self.source}: it holds no rows")
        examples = "; ".join(str(row) for row in skipped[:3])
        advice = ""
        missing = next((row.image_path for row in skipped if row.kind == MISSING_IMAGE), None)
        if missing is not None:
            place = self._folders.found_near(missing)
            advice = f". Relative image paths are looked up in {self._folders.root or '.'}; " + (
                "name another folder with image_root=…" if place is None else f"there is one in image_root={place}"
            )
        raise DataError(
            f"No valid image-text pairs in {self.source}: {counted(len(skipped), 'row', 'were')} skipped, and "
            f"none is left ({examples}"
            f"{'; …' if len(skipped) > 3 else ''}){advice}"
        )

    def _drop_contested(self) -> None:
        contested = self._folders.contested
        for pair in self._pairs:
            if pair.image_path in contested:
                reason = f"{pair.image_path} is there for several rows that name other folders: which one is meant?"
                self.skip("row", str(pair.image_path), reason, MISSING_IMAGE)
        self._pairs[:] = [pair for pair in self._pairs if pair.image_path not in contested]

    def _drop_guesses(self) -> None:
        """Leave out rows for whose image that of another row was taken, which differs in its suffix."""
        dropped, guesses = set[int](), {id(pair) for pair, _, _ in self._suffixes}
        certain = {pair.image_path for pair in self._pairs if id(pair) not in guesses}
        for pair, where, image in self._suffixes:
            if pair.image_path in certain or len(self._folders.guessed[pair.image_path]) > 1:
                reason = f"image {image} is not there ({pair.image_path.name}, the nearest name, is another row's)"
                self.skip(where, image, reason, MISSING_IMAGE)
                dropped.add(id(pair))
        self._pairs[:] = [pair for pair in self._pairs if id(pair) not in dropped]

    def _name_splits(self, column: str, sure: bool) -> None:
        """Give each pair its split's name; where the column is none of splits after all, give it none."""
        pairs = self._pairs
        words = Counter(pair.split for pair in pairs if pair.split is not None)
        known = {word: split for word in words if (split := split_of(word)) is not None}
        if len(known) < len(words) and (known or sure):
            wrong = [word for word in words if word not in known]
            listing = ", ".join(f"{word!r} ({counted(words[word], 'row')})" for word in wrong[:5]) + ", …" * (
                len(wrong) > 5
            )
            raise DataError(
                f"The column {column!r} of {self.source} has values that name no split: {listing}. Write train, val or "
                "test in each row, or do not use the column, with split_col=null"
            )
        if known:
            for where, image in self._unsplit:
                self.skip(where, image, f"the column {column!r} says no split for it")
            pairs[:] = [pair for pair in pairs if pair.split is not None]
        elif words:
            self._pairs.notes = [note for note in self._pairs.notes if f"(split_col={column})" not in note]
            listing = ", ".join(repr(word) for word in sorted(words)[:5])
            self.note(f"column {column!r} is not used to divide the rows: its values ({listing}) name no split")
        for pair in pairs:
            pair.split = known.get(pair.split) if pair.split is not None else None
        if known:
            counts = Counter(pair.split for pair in pairs)
            listing = ", ".join(f"{split} {counts[split]}" for split in SPLIT_NAMES if counts[split])
            self.note(f"column {column!r} says the split of each row: {listing}")

    def _tell(self) -> None:
        pairs = self._pairs
        if respelled := self._folders.respelled:
            listing = ", ".join(f"{difference}: {count}" for difference, count in respelled.most_common())
            self.note(
                f"{counted(respelled.total(), 'image', 'were')} found under a name that is spelled otherwise "
                f"({listing})"
            )
        for what, words in self._missing.items():
            listing = ", ".join(f"{word!r} ({counted(count, 'row')})" for word, count in words.most_common())
            self.note(f"as a {what}, {listing} is read as missing")
        if self._lists:
            self.note(
                f"{counted(self._lists, 'cell', 'hold')} a list of captions, each of which is a caption of its own"
            )
        # A value for each row would keep nothing together.
        pairs.proposed = {column: len(found) for column, found in self._proposed.items() if 0 < len(found) < self._rows}
