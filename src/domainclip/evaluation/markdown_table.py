"""Tables of a page in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; cells may hold anything, a pipe or a line break included."""
    columns = list(header)
    lines = [columns, ["---"] * len(columns), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
