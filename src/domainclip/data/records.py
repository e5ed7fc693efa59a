"""What a data set is made of: pairs of an image's path and a caption, and the rows that were skipped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from domainclip.data.captions.from_labels import CLASS_CAPTION
from domainclip.data.images.tar_files import is_member
from domainclip.errors import DataError, InputTypeError, MissingFileError
from domainclip.words import counted

DISCIPLINE_COL = "discipline"
"""Column (key) with the field of study that a row is from, where a data set spans several."""


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns (of an entry's keys), and how its rows become pairs.

    Attributes:
        image_col: The image's path; ``image`` and ``image_path`` stand for each other.
        caption_col: The caption.
        label_col: The class, where there is one.
        group_col: What must not straddle two splits, where there is such a thing.
        split_col: The split that each row belongs to, where there is such a column; None: it is not looked at.
        image_root: Where relative paths start; the table's own folder, if left out.
        strict: Whether a row that cannot be used is an error.
        caption_template: Writes captions from labels where there is no caption column.
        domain_template: Does so where none is given.
        text_needed: Whether a row is only used with a caption or a label. Without, its caption is empty.

    A name that is not the default has to be there; for the others usual names are tried too (``sources.columns``).
    """

    image_col: str = "image_path"
    caption_col: str = "caption"
    label_col: str = "label"
    group_col: str = "group"
    image_root: Path | str | None = None
    strict: bool = False
    caption_template: str | None = None
    split_col: str | None = "split"
    domain_template: str = CLASS_CAPTION
    text_needed: bool = True


class ColumnOptions(TypedDict, total=False):
    """The keywords of a loader that are seldom given; see ``Columns``."""

    label_col: str
    group_col: str
    image_root: Path | str | None
    strict: bool
    caption_template: str | None
    split_col: str | None
    domain_template: str
    text_needed: bool


class ImageTextPair(tuple[Path, str]):
    """``(image_path, caption)`` that also carries ``label``, ``group``, ``discipline`` and ``split``.

    It unpacks, compares and hashes as the plain two-tuple; ``label`` (the class), ``group`` (patient,
    board, slide: what must never straddle two splits), ``discipline`` (geology, botany) and ``split`` ("train",
    "validation", "test") are attributes, None where the data do not say. ``labels`` are the classes of an image that
    may have several; ``label`` is None then.
    """

    label: str | None
    group: str | None
    discipline: str | None
    split: str | None
    labels: tuple[str, ...] | None

    def __new__(
        cls,
        image_path: Path | str,
        caption: str,
        label: str | None = None,
        group: str | None = None,
        discipline: str | None = None,
        split: str | None = None,
        labels: tuple[str, ...] | None = None,
    ) -> ImageTextPair:
        pair = super().__new__(cls, (Path(image_path), caption))
        pair.label = label
        pair.group = group
        pair.discipline = discipline
        pair.split = split
        pair.labels = labels
        return pair

    @classmethod
    def of(cls, pair: Sequence) -> ImageTextPair:
        """Make a pair of what may be one already.

        Args:
            pair: A pair, or a plain ``(path, caption)`` tuple.

        Returns:
            ``pair`` itself, or a new one with no label and no group.
        """
        return pair if isinstance(pair, cls) else cls(*pair)

    @classmethod
    def checked(cls, pair: object, row: int) -> ImageTextPair:
        """Make a pair of what a user gives as one.

        Args:
            pair: A pair, or a plain ``(path, caption)`` tuple.
            row: Its place, from 0, for messages.

        Returns:
            The pair.

        Raises:
            InputTypeError: It is no pair, its image is no path, or its caption no text.
        """
        if isinstance(pair, cls):
            return pair
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputTypeError(f"Row {row} is {pair!r:.80}: give (image path, caption), or an ImageTextPair")
        path, caption = pair
        if not isinstance(path, str | os.PathLike):
            raise InputTypeError(f"Row {row}: the image is a {type(path).__name__}, not a path: {path!r:.80}")
        if not isinstance(caption, str):
            raise InputTypeError(f"Row {row}: the caption is a {type(caption).__name__}, not a text: {caption!r:.80}")
        return cls(Path(path), caption)

    @property
    def image_path(self) -> Path:
        return self[0]

    @property
    def caption(self) -> str:
        return self[1]

    # Pickle would rebuild a tuple subclass from the tuple alone, which is not what __new__ takes.
    def __reduce__(self) -> tuple:
        return type(self), (self[0], self[1], self.label, self.group, self.discipline, self.split, self.labels)

    def __repr__(self) -> str:
        extras = "".join(
            f", {name}={value!r}"
            for name in ("label", "group", "discipline", "split", "labels")
            if (value := getattr(self, name))
        )
        return f"ImageTextPair({str(self[0])!r}, {self[1]!r}{extras})"


@dataclass(frozen=True)
class SkippedRow:
    """A row that was skipped: ``where`` names file and row ("train.csv row 12"), ``reason`` says why.

    ``kind`` is the reason in one of a few fixed phrases, for counting: "missing image", "empty caption",
    "malformed row".
    """

    where: str
    image_path: str
    reason: str
    kind: str = "malformed row"

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class PairList(list[ImageTextPair]):
    """The usable pairs of one source, in the source's order.

    Attributes:
        source: The file or folder.
        skipped: The rows that could not be used.
        notes: What was guessed or left out when the source was read, in sentences.
        proposed: Columns that look like groups and are not used, with how many values each has.
    """

    def __init__(
        self, pairs: Iterable[ImageTextPair] = (), source: str = "", skipped: Iterable[SkippedRow] = ()
    ) -> None:
        super().__init__(pairs)
        self.source = source
        self.skipped: list[SkippedRow] = list(skipped)
        self.notes: list[str] = []
        self.proposed: dict[str, int] = {}

    @classmethod
    def joined(cls, parts: Sequence[PairList]) -> PairList:
        """The rows of several files as those of one.

        Args:
            parts: One at least.

        Returns:
            All rows in order, with what was skipped and noted.
        """
        joined = cls([pair for part in parts for pair in part], parts[0].source)
        joined.skipped = [row for part in parts for row in part.skipped]
        joined.notes = list(dict.fromkeys(note for part in parts for note in part.notes))
        joined.proposed = {name: count for part in parts for name, count in part.proposed.items()}
        return joined


def usable_rows(pairs: Sequence[ImageTextPair], strict: bool) -> tuple[list[int], list[SkippedRow]]:
    """Which rows have a caption and an image that is there.

    Args:
        pairs: The rows.
        strict: Whether the first one that cannot be used is an error.

    Returns:
        The places of those that can be used, and the others with their reasons.

    Raises:
        DataError: None can be used ("No valid image-text pairs"); or, in strict mode, the first that cannot.
    """
    there: dict[Path, bool] = {}
    usable: list[int] = []
    skipped: list[SkippedRow] = []
    for row, pair in enumerate(pairs):
        path = pair.image_path
        if path not in there:
            there[path] = os.path.exists(path) or is_member(path)
        if there[path] and pair.caption.strip():
            usable.append(row)
            continue
        kind, reason = (
            ("empty caption", "the caption is empty") if there[path] else ("missing image", f"{path} is not there")
        )
        skipped.append(SkippedRow(f"row {row}", str(path), reason, kind))
        if strict:
            kind_of_error = DataError if there[path] else MissingFileError
            raise kind_of_error(f"{skipped[0]}. Mend the row, or set strict=False to skip such rows")
    if not usable:
        why = (
            f"{counted(len(skipped), 'row')} cannot be used, the first: {skipped[0]}"
            if skipped
            else "the data set is empty"
        )
        raise DataError(f"No valid image-text pairs: {why}")
    return usable, skipped
