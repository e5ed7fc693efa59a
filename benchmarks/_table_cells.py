"""What every table is made of: the newest record, a value in it, and its words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def newest(benchmark: str, folder: Path, device: str | None = None) -> dict[str, Any] | list[Any] | None:
    """The record with the latest date in its name (of ``device``, if given); quick ones are no results.

    Raises ``ValueError`` for a file that is not JSON.
    """
    found: list[tuple[str, Any]] = []
    for path in folder.glob(f"{benchmark}-*.json"):
        dated = re.fullmatch(rf"{re.escape(benchmark)}-(\d{{4}}-\d{{2}}-\d{{2}})(?:-\w+)?", path.stem)
        if dated is None:
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not a JSON record ({error})") from error
        facts = content if isinstance(content, dict) else {}
        if facts.get("quick") or (device is not None and facts.get("device", "cpu") != device):
            continue
        found.append((dated.group(1), content))
    return max(found, key=lambda entry: entry[0])[1] if found else None


def look_up(content: Any, *keys: str) -> Any:
    """The value at a path of keys, None where there is none. A dotted key may be one key or a path."""
    for key in keys:
        if isinstance(content, dict) and key not in content and "." in key:
            content = look_up(content, *key.split("."))
        else:
            content = content.get(key) if isinstance(content, dict) else None
    return content


def number(value: Any, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


def ratio(value: Any, reference: Any) -> str:
    return "" if not value or not reference else f"{value / reference:.1f}×"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the columns of numbers, all but the leading ones of words, are up to the reader's eye."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
