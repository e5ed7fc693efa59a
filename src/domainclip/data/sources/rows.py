"""What a reader of tables gives: rows, the names of their columns, and what there is to say of the file."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domainclip.errors import DataError, MissingFileError
from domainclip.files import read_limited

MOST_BYTES = 512_000_000
"""Of a table that is text: it is read whole, and takes several times its size in memory."""


class NoTableError(DataError):
    """A file of a known format that holds no rows at all, such as a JSON file of settings."""


@dataclass
class Row:
    """``where`` is "row 12" (the line of the file, from 1) or "entry 3" (of a JSON list, from 1).

    ``problem`` says why the row cannot be trusted, None where it can.
    """

    where: str
    values: dict[str, Any]
    problem: str | None = None


@dataclass
class Table:
    """What a data file holds.

    Attributes:
        rows: Its rows, in their order.
        columns: The names of its columns; None where each row has keys of its own.
        notes: What was guessed when it was read, in sentences: a separator, an encoding, a layout.
        classes: The names that the numbers of a column stand for, where the file says them.
    """

    rows: Iterable[Row]
    columns: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)


_MARKS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""First bytes that say an encoding; the longer ones first, because two begin alike."""


def read_text(path: Path, notes: list[str] | None = None, limit: int = MOST_BYTES) -> str:
    """Read a file as UTF-8, or as UTF-16 or UTF-32 where its first bytes say so; a byte-order mark is dropped.

    Args:
        path: The file.
        notes: An encoding other than UTF-8 is added to them.
        limit: The most bytes it may have.

    Returns:
        Its text, which is more than blanks.

    Raises:
        DataError: The file is not there, cannot be read, is larger, is in another encoding, or is empty.
    """
    try:
        content = read_limited(path, limit)
    except FileNotFoundError:
        raise MissingFileError(f"Data file not found: {path}") from None
    except OSError as error:
        too_large = error.errno == errno.EFBIG and limit == MOST_BYTES
        hint = ". Save it as Parquet, which is read in parts" if too_large else ""
        raise DataError(f"Cannot read {path}: {error.strerror or error}{hint}") from None
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise _not_decoded(path, content, encoding, error) from None
    if encoding != "utf-8-sig" and notes is not None:
        notes.append(f"it is in {encoding.upper()}, as its first bytes say")
    if not text.strip():
        raise DataError(f"{path} is empty: no valid image-text pairs in it")
    return text


def _not_decoded(path: Path, content: bytes, encoding: str, error: UnicodeDecodeError) -> DataError:
    if encoding != "utf-8-sig":
        return DataError(f"{path} is not the {encoding.upper()} that its first bytes say: save it as UTF-8")
    line = content.count(b"\n", 0, error.start) + 1
    # A byte alone does not say its encoding; Windows-1252 is by far the most frequent beside UTF-8, and the line as it
    # would read tells the user whether it is that.
    shown = content.split(b"\n")[line - 1].decode("cp1252", "replace").strip()
    shown = shown if len(shown) <= 60 else shown[:60] + "…"
    return DataError(
        f"{path} is not UTF-8: byte 0x{content[error.start]:02x} in line {line}. In Windows-1252 (Latin-1), the usual "
        f"other encoding, that line reads {shown!r}: if that is right, convert the file with "
        f"`iconv -f WINDOWS-1252 -t UTF-8`, or save it as UTF-8 from your spreadsheet"
    )
