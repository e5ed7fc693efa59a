"""Tables whose lines are rows: CSV, TSV, and what is called so though another character separates the columns."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from domainclip.data.sources.columns import names_an_image
from domainclip.data.sources.folder_contents import is_image_name
from domainclip.data.sources.rows import Row, Table, read_text
from domainclip.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""What may separate columns, and how messages call it."""

_SEP_LINE = re.compile(r'"?sep=(.)"?[;,\t ]*\r?\n', re.IGNORECASE)
"""The first line by which a spreadsheet says the separator."""

_HEADER_LINE = "image_path,caption"


def read_delimited(path: Path, delimiter: str, wanted: Collection[str] = ()) -> Table:
    """The rows of a CSV or TSV file; blank lines are skipped.

    Another separator than the expected one is taken where the header shows it, or where a first line ``sep=`` says it.
    Two columns without a header are taken as images and captions where the first one holds names of images.

    Args:
        path: The file.
        delimiter: The separator that the file's name makes one expect.
        wanted: Columns that will be looked at.

    Returns:
        The table. A row with too many fields has a ``problem``.

    Raises:
        DataError: The file cannot be read, has no header, names a column twice, or (while rows are read) is malformed.
    """
    notes: list[str] = []
    text, skipped = read_text(path, notes), 0
    if found := _SEP_LINE.match(text):
        delimiter, text, skipped = found[1], text[found.end() :], 1
        notes.append(f"its first line says that {SEPARATORS.get(delimiter, repr(delimiter))} separate the columns")
        if not text.strip():
            raise DataError(f"{path} is empty: no valid image-text pairs in it")
    else:
        expected, delimiter = delimiter, _separator(text, delimiter, wanted)
        if delimiter != expected:
            notes.append(f"{SEPARATORS[delimiter]} separate its columns, not {SEPARATORS[expected]}")
    # strict: an unclosed quote is an error; otherwise it would swallow the rows that follow into one caption. The blank
    # after a separator is skipped, since a quotation mark counts only as a field's first character.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    records = _records(reader, path, skipped)
    first_line, first = next(records)
    header = [name.strip() for name in first]
    if is_image_name(Path(header[0]).name) and not names_an_image(header, wanted):
        if len(header) != 2:
            raise DataError(
                f"{path} has no header: its first line begins with an image, {header[0]}, and has {len(header)} "
                f"columns. Put a line with their names on top, such as {_HEADER_LINE},label"
            )
        notes.append("it has no header: its two columns are read as image_path and caption")
        records = _and_again((first_line, first), records)
        header = _HEADER_LINE.split(",")
    repeated = {name for name in header if name and header.count(name) > 1}
    if repeated:
        raise DataError(f"{path} names the column {sorted(repeated)[0]!r} twice: rename one of them")
    return Table(_rows(records, header), header, notes)


def _and_again(
    first: tuple[int, list[str]], others: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    yield first
    yield from others


def _rows(records: Iterator[tuple[int, list[str]]], header: list[str]) -> Iterator[Row]:
    for line, fields in records:
        problem = None
        if len(fields) > len(header) and any(field.strip() for field in fields[len(header) :]):
            problem = (
                f"{len(fields)} fields where the header names {len(header)}: "
                "put quotation marks around a caption that holds the separator"
            )
        fields += [""] * (len(header) - len(fields))
        yield Row(f"row {line}", dict(zip(header, fields, strict=False)), problem)


def _separator(text: str, expected: str, wanted: Collection[str]) -> str:
    """The separator by which the header holds a column of images, the expected one before others; without such a column
    the one that gives the first two lines the same number of fields, more than one."""
    lines = [line for line in text.replace("\r", "\n").split("\n", 50)[:50] if line.strip()][:2]
    order = [expected, *(each for each in SEPARATORS if each != expected)]
    fields = {each: [_fields(line, each) for line in lines] for each in order}
    for each in order:
        if len(fields[each][0]) > 1 and names_an_image(fields[each][0], wanted):
            return each
    if names_an_image(fields[expected][0], wanted) or len(fields[expected][0]) > 1:
        return expected
    even = [each for each in order if len({len(found) for found in fields[each]}) == 1 and len(fields[each][0]) > 1]
    return even[0] if len(even) == 1 else expected


def _fields(line: str, separator: str) -> list[str]:
    try:
        found = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:  # a quoted field goes on in the next line
        found = line.split(separator)
    return [field.strip() for field in found]


def _records(reader: Any, path: Path, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Non-blank records with the line each begins on."""
    while True:
        line = reader.line_num + 1 + skipped
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
