"""What reads a data file, by its suffix; and Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from domainclip.data.sources.delimited import read_delimited
from domainclip.data.sources.json_tables import read_json, read_json_lines
from domainclip.data.sources.rows import Row, Table
from domainclip.data.sources.webdataset import read_tar
from domainclip.errors import DataError, MissingExtraError, MissingFileError
from domainclip.registry import Registry

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


def read_parquet(path: Path, wanted: Collection[str]) -> Table:
    """Rows of a Parquet file, numbered from 1.

    Where the data set's hub has written the names of classes into the schema, they come along.

    Args:
        path: The file.
        wanted: Columns to read.

    Returns:
        The table, whose rows are read 4,096 at a time.

    Raises:
        MissingExtraError: ``pyarrow`` is not installed.
        DataError: The file is not there, is empty, or is no Parquet.
    """
    file = _parquet_file(path)
    schema = file.schema_arrow
    columns = list(schema.names)
    classes = _classes(schema.metadata or {})
    return Table(_batches(path, file, [name for name in columns if name in wanted]), columns, [], classes)


def _batches(path: Path, file: Any, columns: list[str]) -> Iterator[Row]:
    from pyarrow import ArrowException

    number = 0
    batches = file.iter_batches(columns=columns, batch_size=4096)
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


def _classes(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """The names of classes, by column, as the ``datasets`` library writes them into a schema."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        found = {column: _names(feature) for column, feature in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError):  # of another library, or of none
        return {}
    return {column: names for column, names in found.items() if names}


def _names(feature: Any) -> list[str]:
    """Of a class label, or of a list of them."""
    if isinstance(feature, list):
        return _names(feature[0]) if feature else []
    if not isinstance(feature, dict):
        return []
    if feature.get("_type") == "ClassLabel":
        return [str(name) for name in feature.get("names") or []]
    return _names(feature.get("feature"))


def _parquet_file(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", f"Reading {path}") from None
    if not path.exists():
        raise MissingFileError(f"Data file not found: {path}")
    if not path.is_file():
        raise DataError(f"Cannot read {path}: it is a folder, a pipe or a device, not a file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: no valid image-text pairs in it")
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from None


@SOURCES.register(".csv")
def _csv(path: Path, wanted: Collection[str]) -> Table:
    return read_delimited(path, ",", wanted)


@SOURCES.register(".tsv")
def _tsv(path: Path, wanted: Collection[str]) -> Table:
    return read_delimited(path, "\t", wanted)


@SOURCES.register(".json")
def _json(path: Path, wanted: Collection[str]) -> Table:
    return read_json(path)


@SOURCES.register(".ndjson")
@SOURCES.register(".jsonl")
def _json_lines(path: Path, wanted: Collection[str]) -> Table:
    return read_json_lines(path)


SOURCES.register(".parquet")(read_parquet)
SOURCES.register(".tar")(read_tar)
