"""Reading tables (CSV, TSV, JSON, JSON lines, Parquet) into rows, with errors that name file and line."""

from __future__ import annotations

import csv
import errno
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainclip.errors import DataError, MissingExtraError
from domainclip.files import read_limited
from domainclip.registry import Registry

MOST_BYTES = 512_000_000
"""Of a table that is text: it is read whole, and takes several times its size in memory."""


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
    """

    rows: Iterable[Row]
    columns: list[str] | None = None


SOURCES: Registry[Callable[[Path, Collection[str]], Table]] = Registry("data file format")
"""What reads a data file, by its suffix in small letters with the dot: ``read(path, wanted)``, where ``wanted`` are the
columns that will be looked at. Raises ``DataError`` for a file that it cannot read."""


def source_of(path: Path) -> Callable[[Path, Collection[str]], Table] | None:
    """What reads a file, by its suffix.

    Args:
        path: The file.

    Returns:
        The entry of ``SOURCES``; None where there is none for the suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in SOURCES:
        return None
    return SOURCES[suffix]


def read_text(path: Path, limit: int = MOST_BYTES) -> str:
    """Read a file as UTF-8; a byte-order mark is dropped.

    Args:
        path: The file.
        limit: The most bytes it may have.

    Returns:
        Its text, which is more than blanks.

    Raises:
        DataError: The file is not there, cannot be read, is larger, is not UTF-8, or is empty.
    """
    try:
        content = read_limited(path, limit)
    except FileNotFoundError:
        raise DataError(f"Data file not found: {path}") from None
    except OSError as error:
        hint = (
            ". Save it as Parquet, which is read in parts" if limit == MOST_BYTES and error.errno == errno.EFBIG else ""
        )
        raise DataError(f"Cannot read {path}: {error.strerror or error}{hint}") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is not UTF-8 (its first bytes say UTF-16): save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} in line {line}; save it as UTF-8"
        ) from None
    if not text.strip():
        raise DataError(f"{path} is empty: no valid image-text pairs in it")
    return text


def read_delimited(path: Path, delimiter: str) -> tuple[list[str], Iterator[Row]]:
    """Header and rows of a CSV or TSV file whose first line names the columns; blank lines are skipped.

    Args:
        path: The file.
        delimiter: One character.

    Returns:
        The columns' names, and the rows as they are read. A row with too many fields has a ``problem``.

    Raises:
        DataError: The file cannot be read, names a column twice, or (while rows are read) is malformed.
    """
    # strict: an unclosed quote is an error; otherwise it would swallow the rows that follow into one caption.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    records = _records(reader, path)
    header = [name.strip() for name in next(records)[1]]
    repeated = {name for name in header if name and header.count(name) > 1}
    if repeated:
        raise DataError(f"{path} names the column {sorted(repeated)[0]!r} twice: rename one of them")

    def rows() -> Iterator[Row]:
        for line, fields in records:
            problem = None
            if len(fields) > len(header) and any(field.strip() for field in fields[len(header) :]):
                problem = (
                    f"{len(fields)} fields where the header names {len(header)}: "
                    "put quotation marks around a caption that holds the separator"
                )
            fields += [""] * (len(header) - len(fields))
            yield Row(f"row {line}", dict(zip(header, fields, strict=False)), problem)

    return header, rows()


def _records(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Non-blank records with the line each begins on."""
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"Malformed table {path}, line {line}: {error}. A field with a quotation mark is written in "
                'quotation marks, with those inside doubled: "a 5"" pipe"'
            ) from None
        if any(field.strip() for field in fields):
            yield line, fields


def read_json(path: Path) -> Iterator[Row]:
    """Entries of a JSON list, or of the list under ``"data"``.

    Args:
        path: The file.

    Returns:
        Rows, named by their place in the list from 1.

    Raises:
        DataError: The file cannot be read, holds no list, or (while rows are read) an entry is no object.
    """
    content = _json_value(read_text(path), path)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list):
        found = f"an object with keys {', '.join(content)}" if isinstance(content, dict) else type(content).__name__
        raise DataError(f'{path} must hold a list of {{"image": …, "caption": …}} or {{"data": [...]}}, not {found}')
    return (_entry(path, f"entry {number}", value) for number, value in enumerate(content, start=1))


def read_json_lines(path: Path) -> Iterator[Row]:
    """One JSON object a line; blank lines are skipped.

    Args:
        path: The file.

    Returns:
        Rows, named by their line from 1.

    Raises:
        DataError: While rows are read: the file cannot be read, or a line is no JSON object.
    """
    # Split at line feeds alone: str.splitlines also splits at U+2028, which JSON allows inside a string.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield _entry(path, f"row {number}", _json_value(line, path, number))


def _json_value(text: str, path: Path, line: int | None = None) -> Any:
    """The value that ``text`` holds, of the whole file or of one of its lines."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = " (one object a line? name the file .jsonl)" if error.msg == "Extra data" and line is None else ""
        at = f"line {line or error.lineno}, column {error.colno}"
        raise DataError(f"Malformed JSON in {path}, {at}: {error.msg}{hint}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in lists without end
        at = "" if line is None else f", line {line}"
        deep = isinstance(error, RecursionError)
        what = "values lie too deep inside each other" if deep else "a number of thousands of digits"
        raise DataError(f"Malformed JSON in {path}{at}: {what}") from None


def _entry(path: Path, where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{path}, {where}: must be an object with 'image' and 'caption', not {type(value).__name__}")
    return Row(where, value)


def parquet_columns(path: Path) -> list[str]:
    """Names of a Parquet file's columns.

    Args:
        path: The file.

    Returns:
        The names, in the file's order.

    Raises:
        MissingExtraError: ``pyarrow`` is not installed.
        DataError: The file is not there, is empty, or is no Parquet.
    """
    return list(_parquet_file(path).schema_arrow.names)


def read_parquet(path: Path, columns: Collection[str]) -> Iterator[Row]:
    """Rows of a Parquet file, numbered from 1.

    Args:
        path: The file.
        columns: Those to read.

    Returns:
        Rows, read 4,096 at a time.

    Raises:
        MissingExtraError: While rows are read: ``pyarrow`` is not installed.
        DataError: While rows are read: the file is not there, is empty, or is no Parquet.
    """
    number = 0
    batches = _parquet_file(path).iter_batches(columns=list(columns), batch_size=4096)
    from pyarrow import ArrowException

    while True:
        try:
            rows = next(batches).to_pylist()
        except StopIteration:
            return
        except (ArrowException, OSError, ValueError) as error:  # damaged inside, or text that is not UTF-8
            raise DataError(f"{path} cannot be read after row {number}: {error}") from None
        for values in rows:
            number += 1
            yield Row(f"row {number}", values)


def _parquet_file(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", f"Reading {path}") from None
    if not path.is_file():
        problem = f"Cannot read {path}: it is no file" if path.exists() else f"Data file not found: {path}"
        raise DataError(problem)
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: no valid image-text pairs in it")
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from None


@SOURCES.register(".csv")
def _csv(path: Path, wanted: Collection[str]) -> Table:
    columns, rows = read_delimited(path, ",")
    return Table(rows, columns)


@SOURCES.register(".tsv")
def _tsv(path: Path, wanted: Collection[str]) -> Table:
    columns, rows = read_delimited(path, "\t")
    return Table(rows, columns)


@SOURCES.register(".json")
def _json(path: Path, wanted: Collection[str]) -> Table:
    return Table(read_json(path))


@SOURCES.register(".ndjson")
@SOURCES.register(".jsonl")
def _json_lines(path: Path, wanted: Collection[str]) -> Table:
    return Table(read_json_lines(path))


@SOURCES.register(".parquet")
def _parquet(path: Path, wanted: Collection[str]) -> Table:
    columns = parquet_columns(path)
    return Table(read_parquet(path, [name for name in columns if name in wanted]), columns)
