"""Which column holds what: those that a user names, else the usual names, which are guessed and said."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from domainclip.data.records import DISCIPLINE_COL, Columns
from domainclip.data.sources.label_columns import unused_note
from domainclip.errors import DataError
from domainclip.registry import nearest

_IMAGE = (
    *(
        "imagepath",
        "image",
        "filepath",
        "filename",
        "file",
        "img",
        "imgpath",
        "imagefile",
        "imagename",
        "imagefilename",
    ),
    *("imageindex", "imgfile", "imgname", "path"),
)
_CAPTION = (
    *("caption", "captions", "text", "texts", "description", "descriptions", "report", "sentence", "sentences"),
    *("comment", "alttext", "title", "findings", "impression"),
)
_LABEL = (
    *("label", "labels", "class", "classname", "classlabel", "labelname", "category", "categoryname", "target"),
    *("diagnosis", "findinglabels"),
)
_ADDRESS = {"url", "urls", "imageurl", "imageurls", "imgurl", "link", "imagelink", "href"}
_GROUP = ("group", "groups", "groupid", "groupname")
_SPLIT = (
    *("split", "splits", "splitname", "datasplit", "trainvaltest", "traintest", "trainval", "subset", "partition"),
    *("set", "fold", "phase", "usage", "settype", "datasettype", "dataset", "stage", "mode"),
)
_NAMES_OF_LABELS = ("classname", "labelname", "labeltext")
SPLIT_FLAGS = {
    **dict.fromkeys(("istrain", "istraining", "istrainingimage"), ("train", "test")),
    **dict.fromkeys(("istest", "istestset"), ("test", "train")),
    **dict.fromkeys(("isval", "isvalid", "isvalidation"), ("validation", "train")),
}
"""Columns that say yes or no, and the splits that these mean."""
USUAL = {"image_col": _IMAGE, "caption_col": _CAPTION, "label_col": _LABEL, "group_col": _GROUP, "split_col": _SPLIT}
"""For each option that names a column, the names that it usually has, the surest first, in small letters without blanks
and signs."""

NEEDED = ("image_col", "caption_col")
"""Those without which a row is no pair."""

_PROPOSED = frozenset(
    (
        *("patient", "subject", "participant", "person", "individual", "donor", "animal", "mrn", "case", "study"),
        *("lesion", "accession", "exam", "examination", "visit", "encounter", "session", "user", "pid", "p"),
        *("series", "specimen", "slide", "lot", "batch", "board", "wafer", "panel", "serial", "plate", "video"),
        *("scene", "sequence"),
    )
)
"""Columns whose rows probably belong together, without a final "id" or "number". They are proposed, not used: only the
user knows."""

_NO_LABELS = frozenset(
    (
        *("", "id", "ids", "index", "idx", "unnamed0", "number", "no"),
        *("age", "sex", "gender", "width", "height", "size"),
        *("valid", "followup", "score", "weight", "duplicate", "checked"),
    )
)
"""Columns that may hold 0 and 1 and are no labels, beside those of ``SPLIT_FLAGS``."""

_OF_A_NAME = re.compile(r"(instanceuid|uid|id|ids|number|no|nr|name|code)$")
_NUMBERED = re.compile(r"(captions?|texts?|sentences?|descriptions?|comments?)(\d+)")


@dataclass(frozen=True)
class FoundColumns:
    """The columns of one table.

    Attributes:
        image: The image.
        captions: The captions, one or several; none where captions are written from the label.
        label: The class, None where there is none; likewise those below.
        group: What no split may separate.
        split: The split that a row belongs to.
        split_is_named: Whether the split's column is surely one, by the user's word or by its name.
        flags: Columns that say of one label each whether it applies; labels are read from them where there is no
            column of labels and none of captions.
        proposed: Columns that look like groups and are not used, where there is no group.
        others: Where there are no captions, the columns that are nothing of this.
        notes: What was guessed, in sentences.
    """

    image: str
    captions: tuple[str, ...]
    label: str | None
    group: str | None
    split: str | None
    split_is_named: bool
    flags: tuple[str, ...]
    proposed: tuple[str, ...]
    others: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def wanted(self) -> set[str]:
        """All columns that are read."""
        one = (self.image, self.label, self.group, self.split, DISCIPLINE_COL)
        several = (*self.captions, *self.flags, *self.proposed, *self.others)
        return {name for name in (*one, *several) if name is not None}


def is_named(names: Columns, option: str) -> bool:
    """Whether the user has named a column: a name other than the default.

    Args:
        names: The names.
        option: Such as ``group_col``.

    Returns:
        True for one that has to be there.
    """
    value = getattr(names, option)
    return value is not None and value not in (
        ("image", "image_path") if option == "image_col" else (Columns.__dataclass_fields__[option].default,)
    )


def likely_columns(names: Columns) -> set[str]:
    """The columns that may be looked at, for a reader that wants to know them before the file is open.

    Args:
        names: The names that the user gives.

    Returns:
        Those, and the usual ones in their commonest spelling.
    """
    named = {getattr(names, option) for option in USUAL} - {None}
    return {*named, "image", "image_path", *(name for usual in USUAL.values() for name in usual), DISCIPLINE_COL}


def may_be_flags(names: Columns, columns: Iterable[str]) -> list[str]:
    """The columns that may each say of one label whether it applies, as far as names tell.

    Args:
        names: The names that the user gives.
        columns: Those of the table.

    Returns:
        Those that are nothing else; none where there is a column of labels.
    """
    columns = list(columns)
    if is_named(names, "label_col") or names.label_col in columns or _guess("label_col", columns) is not None:
        return []
    named = {getattr(names, option) for option in USUAL} | {DISCIPLINE_COL}
    usual = {name for each in USUAL.values() for name in each} | _ADDRESS | _NO_LABELS | SPLIT_FLAGS.keys()
    return [
        name
        for name in columns
        if name not in named
        and plain(name) not in usual
        and _OF_A_NAME.sub("", plain(name)) not in _PROPOSED
        and not _NUMBERED.fullmatch(plain(name))
    ]


def names_an_image(columns: Iterable[str], names: Collection[str]) -> bool:
    """Whether a table's header holds a column of images.

    Args:
        columns: The header.
        names: Columns that are asked for.

    Returns:
        True where one of them is there, or one of the usual names.
    """
    return any(column in names or plain(column) in _IMAGE for column in columns)


def missing_column(kind: str, name: str, source: str, found: Iterable[str], option: str) -> DataError:
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
    by_name = {plain(column): column for column in reversed(found)}
    guess = by_name.get(plain(name)) or nearest(name, found)
    hint = f" (did you mean {guess!r}?)" if guess else ""
    listing = ", ".join(map(repr, found) if any(set(" ,;|\t") & set(c) for c in found) else found) or "none"
    keys = f"{option}=…" + " (or document_col=…, where that names it)" * (option == "group_col")
    return DataError(f"Missing {name!r} {kind} in {source}: found {kind}s {listing}{hint}; name it with {keys}")


def find_columns(
    names: Columns,
    found: Sequence[str],
    source: str,
    kind: str = "column",
    elsewhere: Collection[str] = (),
    flags: Sequence[str] = (),
) -> FoundColumns:
    """Find what each column of a table is.

    Args:
        names: The names that the user gives. One that is not the default has to be there.
        found: The table's columns.
        source: What errors call the table.
        kind: ``column``, or ``key`` of JSON.
        elsewhere: Columns of a ``meta.csv`` beside the table, or keys of other entries, where an optional one may be.
        flags: Columns whose cells say of one label each whether it applies.

    Returns:
        The columns, with what was guessed.

    Raises:
        DataError: A column that is named is missing, there is no column of images, or there are neither captions nor
            labels.
    """
    notes: list[str] = []

    def column(option: str, what: str) -> str | None:
        wanted = getattr(names, option)
        if option == "label_col" and not is_named(names, option) and wanted in found:
            # Of a number and its name, the name is what prompts are made of.
            named = next((name for name in found if plain(name) in _NAMES_OF_LABELS), None)
            if named is not None:
                notes.append(f"{kind} {named!r} is read as the {what}, not {wanted!r} ({option}={named})")
                return named
        if wanted is None or wanted in found:
            return wanted
        if is_named(names, option):
            if option not in NEEDED and wanted in elsewhere:
                return None
            raise missing_column(kind, wanted, source, found, option)
        guess = _guess(option, found)
        if option == "split_col" and guess is None:
            guess = next((name for name in found if plain(name) in SPLIT_FLAGS), None)
        if guess is not None and not (option == "image_col" and guess in ("image", "image_path")):
            notes.append(f"{kind} {guess!r} is read as the {what} ({option}={guess})")
        return guess

    image = column("image_col", "image")
    if image is None:
        addresses = next((name for name in found if plain(name) in _ADDRESS), None)
        if addresses is not None:
            raise DataError(
                f"{source} has no column of images, and its column {addresses!r} probably holds addresses on the web: "
                "download the images first, for instance with img2dataset, and name the files in a column image_path"
            )
        raise missing_column(kind, names.image_col, source, found, "image_col")
    label = column("label_col", "label")
    flags = tuple(name for name in flags if name in found)
    captions = _captions(names, found, flags[0] if flags and label is None else label, source, kind, notes)
    if flags and captions:
        notes.append(unused_note(flags))
        flags = ()
    group = column("group_col", "group")
    split = column("split_col", "split")
    proposed = [
        name
        for name in found
        if _OF_A_NAME.sub("", plain(name)) in _PROPOSED and name not in (image, label, split, *captions)
    ]
    if group is not None or names.group_col in elsewhere:
        proposed = []
    sure = split is not None and (is_named(names, "split_col") or "split" in plain(split))
    known = (image, label, group, split, DISCIPLINE_COL, *flags)
    others = [] if captions else [name for name in found if name not in known]
    several = (tuple(flags), tuple(proposed), tuple(others), tuple(notes))
    return FoundColumns(image, captions, label, group, split, sure, *several)


def _captions(
    names: Columns, found: Sequence[str], label: str | None, source: str, kind: str, notes: list[str]
) -> tuple[str, ...]:
    if is_named(names, "caption_col"):
        if names.caption_col not in found:
            raise missing_column(kind, names.caption_col, source, found, "caption_col")
        return (names.caption_col,)
    numbered = [name for name in found if _NUMBERED.fullmatch(plain(name))]
    numbered.sort(key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    single = names.caption_col if names.caption_col in found else _guess("caption_col", found)
    captions = tuple(dict.fromkeys(([single] if single is not None else []) + numbered))
    if len(captions) > 1:
        notes.append(f"{kind}s {', '.join(captions)} are read as the captions of each image")
    elif captions and captions[0] != names.caption_col:
        notes.append(f"{kind} {captions[0]!r} is read as the caption (caption_col={captions[0]})")
    elif not captions and label is None and names.text_needed:
        raise DataError(
            f"{missing_column(kind, names.caption_col, source, found, 'caption_col')}, or name the class with "
            "label_col=…, from which captions are written"
        )
    return captions


def _guess(option: str, found: Sequence[str]) -> str | None:
    by_name = {plain(column): column for column in reversed(found)}
    return next((by_name[name] for name in USUAL[option] if name in by_name), None)


def plain(name: str) -> str:
    """A column's name in small letters, without blanks and signs.

    Args:
        name: As the table has it.

    Returns:
        What ``USUAL`` holds.
    """
    return re.sub(r"[\W_]+", "", name.casefold())
