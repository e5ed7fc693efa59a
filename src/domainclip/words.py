"""Numbers with their nouns and verbs, as messages and reports have them: "1 image is", "1,200 images are"."""

from __future__ import annotations

import os
from collections.abc import Sequence

_SINGULAR = {"are": "is", "have": "has", "were": "was", "do": "does"}


def counted(n: int, noun: str, verb: str = "") -> str:
    """A number with its noun.

    Args:
        n: How many.
        noun: The noun in the singular, whose plural is a regular one.
        verb: What they do, in the plural: "are", "have", "name"; left out, nothing.

    Returns:
        "1 image", "1,200 images", "1 query", "1 row is".
    """
    return f"{n:,} {noun if n == 1 else _plural(noun)}{_agreeing(n, verb)}"


def some_of(n: int, total: int, noun: str, verb: str = "") -> str:
    """How many of how many.

    Args:
        n: Some.
        total: All.
        noun: The noun in the singular.
        verb: What some of them do, in the plural.

    Returns:
        "1 of 120 rows is", "3 of 120 rows are".
    """
    return f"{n:,} of {counted(total, noun)}{_agreeing(n, verb)}"


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def _agreeing(n: int, verb: str) -> str:
    if not verb:
        return ""
    return f" {verb}" if n != 1 else f" {_SINGULAR.get(verb, f'{verb}s')}"


def shortened_paths(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Paths as a table shows them.

    Args:
        paths: Of images.

    Returns:
        The folder that all lie in, or an empty text; and their paths within it.
    """
    folders = {os.path.dirname(path) for path in paths}
    try:
        folder = os.path.commonpath(folders)
    except ValueError:  # relative and absolute ones, or other drives
        folder = ""
    return folder, [os.path.relpath(path, folder) if folder else path for path in paths]
