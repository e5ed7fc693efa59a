"""Tables of a page in Markdown, and words of the user's own in it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# A tag or an entity would be lost, a pair of stars or backticks would vanish, an image would be fetched. An underscore
# inside a word, "<" before a number and "&" between words are text to Markdown too, and stay readable as they are.
_MARKUP = re.compile(r"[\\*`|]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=\()|(?<!\w)_+|_+(?!\w)")


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; cells may hold anything, and are shown as they are."""
    columns = list(header)
    lines = [columns, ["---"] * len(columns), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(plain(value) for value in line) + " |" for line in lines)


def plain(value: Any) -> str:
    """A text in one line whose signs stand for themselves: the class ``**b**`` is not bold, ``<unk>`` no tag."""
    return " ".join(_MARKUP.sub(lambda found: "".join(f"\\{sign}" for sign in found[0]), str(value)).split())
