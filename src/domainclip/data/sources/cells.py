"""What the cells of a table mean: missing values, numbers, lists of captions or labels."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

_MISSING = frozenset(
    (
        *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
        *("NULL", "NaN", "NaT", "None", "n/a", "nan", "null"),
    )
)
"""What pandas reads as missing. It writes such words where a value was missing before, so they come back as text."""

_MISSING_LOOSELY = frozenset(
    (
        *("-", "--", "---", "–", "—", "?", ".", "n.a.", "na", "n/a", "nan", "nat", "none", "null", "nil"),
        *("missing", "unknown", "undefined", "unspecified", "not available"),
    )
)
"""In small letters, what besides stands for no group and no caption. One "unknown" for all is no patient."""

_NAME_KEYS = ("name", "label", "class", "class_name", "category")
"""Keys of a label that is an object."""
_ARRAY = re.compile(r"array\((\[.*\])(?:,\s*dtype=[^()]*)?\)", re.DOTALL)
"""A list as numpy shows it, and pandas writes it into CSV."""
_BRACES = re.compile(r"\{([^{}:'\"]*)\}")
"""A list as PostgreSQL writes it."""

_WHOLE_NUMBER = re.compile(r"[+-]?\d+\.0*|[+-]?\d+(\.\d+)?[eE]\+\d{1,2}")
"""A whole number as pandas writes it where a column has missing values: 2.0, 1e+16."""


def is_missing(text: str, loosely: bool = False) -> bool:
    """Whether a cell's text is a word for a missing value.

    Args:
        text: Without blanks around it.
        loosely: Whether dashes, "unknown" and the like are such words too: yes in groups and captions; as the name of
            a class they may be meant.

    Returns:
        True for such a word.
    """
    return text in _MISSING or (loosely and text.casefold() in _MISSING_LOOSELY)


def text_or_none(value: Any) -> str | None:
    """A label or group as text. Numbers that are equal give equal texts: 2, 2.0 and "2.0" are "2".

    Args:
        value: A cell of a table.

    Returns:
        The text without blanks around it; None for null, NaN and blank.
    """
    if value is None or value != value:  # NaN is the only value that differs from itself
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    if _WHOLE_NUMBER.fullmatch(text) and float(text).is_integer():
        return text.partition(".")[0] if "e" not in text.casefold() else str(int(float(text)))
    return text or None


def list_in_cell(value: Any, of: tuple[type, ...] = (str,)) -> list[Any] | None:
    """The list that a cell holds: a real one, or one that was written as text by JSON, Python or numpy.

    Args:
        value: A cell.
        of: What the elements of a list that is written as text may be, besides missing.

    Returns:
        Its elements; None where the cell is no such list.
    """
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str):
        return None
    text = value.strip()
    if array := _ARRAY.fullmatch(text):
        text = array[1]
    if text in ("[]", "()", "set()"):
        return []
    is_set = text.startswith(("{'", '{"')) and text.endswith(("'}", '"}'))
    if not (is_set or (text.startswith(("[", "(")) and text.endswith(("]", ")")))) or len(text) > 1_000_000:
        return None
    # numpy writes no commas between its elements, and Python would join "'a' 'b'" to one text.
    spaced = re.sub(r"""(?<=['"])\s+(?=['"])""", ", ", text)
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(spaced)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue  # it is no list in this notation, which is no fault: a caption may stand in brackets
        if isinstance(found, set):
            found = sorted(found, key=text.find)  # as they were written
        if isinstance(found, list | tuple) and found and all(each is None or isinstance(each, of) for each in found):
            return list(found)
    return None


def captions_in_cell(value: Any) -> list[Any]:
    """The captions of a cell.

    Args:
        value: A text, or a list of texts in whatever notation; of ``{"raw": …}`` the text.

    Returns:
        Its captions as they stand, at least one; an empty list for an empty one.
    """
    if isinstance(value, Mapping):
        value = value.get("raw", value.get("caption", value))
    found = list_in_cell(value)
    if found is None:
        return [value]
    return [each.get("raw", each.get("caption", each)) if isinstance(each, Mapping) else each for each in found]


def is_place_per_class(value: Any) -> bool:
    """Whether a cell of labels holds 0 or 1 for each class, in their order, instead of names.

    Args:
        value: A cell.

    Returns:
        True for a list of these two numbers alone, in which one of them repeats.
    """
    found = list_in_cell(value, (int, float)) if isinstance(value, str | list | tuple) else None
    return found is not None and len(found) > len(set(found)) and set(found) <= {0, 1}


def labels_in_cell(value: Any) -> list[str]:
    """The labels of a cell: of a list, or of a text with ``|`` or ``;`` between them.

    Args:
        value: A cell.

    Returns:
        Each label once, in its order; none where the cell is missing.
    """
    if isinstance(value, Mapping):
        value = next((value[key] for key in _NAME_KEYS if key in value), value)
    if isinstance(value, str) and (array := _BRACES.fullmatch(value.strip())):
        value = array[1].replace(",", "|")
    found = list_in_cell(value, (str, int, float))
    if found is None:
        text = text_or_none(value)
        if text is None:
            return []
        found = re.split(r"[|;]", text)
    texts = [text for each in found if (text := text_or_none(each)) is not None]
    return list(dict.fromkeys(texts))
