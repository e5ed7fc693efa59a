"""Labels that have a column each, with 1 where the label applies: CheXpert's, ISIC's and many others' layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from domainclip.data.sources.cells import is_missing
from domainclip.words import counted

_YES = frozenset({"1", "1.0", "true", "yes", "t", "y"})
_NO = frozenset({"0", "0.0", "false", "no", "f", "n"})
_UNCERTAIN = frozenset({"-1", "-1.0"})


def find_label_columns(rows: Iterable[Mapping[str, Any]], candidates: Sequence[str]) -> tuple[str, ...]:
    """Those of some columns whose cells say yes or no, of all rows.

    Args:
        rows: Read until fewer than two columns are left that may be such.
        candidates: Columns that are nothing else by their name.

    Returns:
        The columns, two at least, each with a yes in some row; none where there are no two.
    """
    left, seen = list(candidates), set[str]()
    for row in rows:
        if len(left) < 2:
            return ()
        said = {name: _answer(row.get(name)) for name in left}
        left = [name for name in left if said[name] is not None]
        seen.update(name for name in left if said[name] == "yes")
    found = tuple(name for name in left if name in seen)
    return found if len(found) > 1 else ()


def says_yes(cell: Any) -> bool | None:
    """Whether a cell says yes.

    Args:
        cell: Of a table.

    Returns:
        False for no; None for what is neither.
    """
    return {"yes": True, "no": False}.get(_answer(cell) or "")


def labels_of(row: Mapping[str, Any], columns: Sequence[str], counts: Counter[str]) -> list[str]:
    """The labels that apply to a row.

    Args:
        row: Its cells by column.
        columns: What ``find_label_columns`` gave.
        counts: How many cells were ``uncertain`` and ``blank`` so far, and how many rows have ``none``; added to.

    Returns:
        The names of columns.
    """
    said = {name: _answer(row.get(name)) for name in columns}
    labels = [name.strip() for name in columns if said[name] == "yes"]
    counts.update(answer for answer in said.values() if answer in ("uncertain", "blank"))
    counts["none"] += not labels
    return labels


def label_notes(columns: Sequence[str], counts: Counter[str]) -> list[str]:
    """What was read, in sentences.

    Args:
        columns: What ``find_label_columns`` gave.
        counts: What ``labels_of`` counted.

    Returns:
        A sentence without a stop.
    """
    note = (
        f"its {len(columns)} columns {_listed(columns)} hold yes and no, or 1 and 0, and are read as labels, of which "
        "an image may have several (a column that is none is to be taken out of the table)"
    )
    absent = [
        f"{counted(counts[answer], 'cell')} {what}"
        for answer, what in (("uncertain", "of -1 (uncertain)"), ("blank", "without an entry (not mentioned)"))
        if counts[answer]
    ]
    if absent:
        note += f"; {' and '.join(absent)} are read as no"
    if counts["none"]:
        note += f"; {counted(counts['none'], 'row', 'have')} none of the labels"
    return [note]


def unused_note(columns: Sequence[str]) -> str:
    """What is said of such columns beside captions.

    Args:
        columns: What ``find_label_columns`` gave.

    Returns:
        A sentence without a stop.
    """
    return (
        f"its columns {_listed(columns)} look like labels and are not used: where they are, write the names of those "
        "that apply into one column 'label', with | between them"
    )


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(columns[:4]) + ", …" * (len(columns) > 4)


def _answer(cell: Any) -> str | None:
    """``yes``, ``no``, ``uncertain`` or ``blank``; None for a cell that is something else."""
    if cell is None or cell != cell:  # NaN differs from itself
        return "blank"
    if not isinstance(cell, str | bool | int | float):
        return None
    text = str(cell).strip()
    if not text or is_missing(text):
        return "blank"
    text = text.casefold()
    return next((name for name, of in (("yes", _YES), ("no", _NO), ("uncertain", _UNCERTAIN)) if text in of), None)
