"""One Parquet file of rows with their embeddings."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from domainclip.errors import DamagedFileError, MissingExtraError

DType = Literal["float16", "float32"]
PATH, DIGEST, LABEL, CAPTION, ERROR, SIZE, MODIFIED, EMBEDDING = (
    *("path", "sha256", "label", "caption", "error"),
    *("size", "modified_ns", "embedding"),
)
"""Columns of a shard: of a row with an ``error`` the embedding is null. ``size`` is -1 where there is no file."""


@dataclass(frozen=True)
class StoredRow:
    """A row without its embedding."""

    path: str
    sha256: str
    label: str
    caption: str
    error: str
    size: int
    modified_ns: int

    @property
    def key(self) -> tuple[str, str, str]:
        """What the data say of the row."""
        return self.path, self.label, self.caption


def require_pyarrow() -> Any:
    """The library that reads and writes shards.

    Returns:
        The package ``pyarrow`` with ``pyarrow.parquet``.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", "A store of embeddings") from None
    return pyarrow


def shard_bytes(rows: Sequence[StoredRow], embeddings: np.ndarray, dtype: DType) -> bytes:
    """The content of a shard, the same for the same rows.

    Args:
        rows: At least one.
        embeddings: ``[rows, dim]``; what stands in rows with an error is not looked at.
        dtype: Of the numbers in the file.

    Returns:
        A Parquet file.

    Raises:
        MissingExtraError: ``pyarrow`` is not installed.
    """
    pyarrow = require_pyarrow()
    numbers = pyarrow.array(np.ascontiguousarray(embeddings, dtype=dtype).reshape(-1))
    bad = pyarrow.array([bool(row.error) for row in rows])
    vectors = pyarrow.FixedSizeListArray.from_arrays(numbers, embeddings.shape[1], mask=bad)
    table = pyarrow.table(
        {
            PATH: pyarrow.array([row.path for row in rows], pyarrow.string()),
            DIGEST: pyarrow.array([row.sha256 or None for row in rows], pyarrow.string()),
            LABEL: pyarrow.array([row.label or None for row in rows], pyarrow.string()),
            CAPTION: pyarrow.array([row.caption or None for row in rows], pyarrow.string()),
            ERROR: pyarrow.array([row.error or None for row in rows], pyarrow.string()),
            SIZE: pyarrow.array([row.size for row in rows], pyarrow.int64()),
            MODIFIED: pyarrow.array([row.modified_ns for row in rows], pyarrow.int64()),
            EMBEDDING: vectors,
        }
    )
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_rows(path: Path) -> list[StoredRow]:
    """The rows of a shard, without their embeddings.

    Args:
        path: A shard.

    Returns:
        The rows in order.

    Raises:
        DamagedFileError: It cannot be read.
        MissingExtraError: ``pyarrow`` is not installed.
    """
    table = read_columns(path, [PATH, DIGEST, LABEL, CAPTION, ERROR, SIZE, MODIFIED])
    # Not fill_null, which imports pandas.
    texts = [[cell or "" for cell in table.column(each).to_pylist()] for each in (PATH, DIGEST, LABEL, CAPTION, ERROR)]
    numbers = [table.column(name).to_pylist() for name in (SIZE, MODIFIED)]
    return list(map(StoredRow, *texts, *numbers))


def read_embeddings(path: Path) -> np.ndarray:
    """The embeddings of a shard.

    Args:
        path: A shard.

    Returns:
        ``[rows, dim]`` in the file's own type; rows with an error are zeros.

    Raises:
        DamagedFileError: It cannot be read.
        MissingExtraError: ``pyarrow`` is not installed.
    """
    column = read_columns(path, [EMBEDDING]).column(EMBEDDING).combine_chunks()
    dim = column.type.list_size
    numbers = column.fill_null([0.0] * dim) if column.null_count else column
    return np.asarray(numbers.flatten()).reshape(-1, dim)


def read_columns(path: Path, columns: list[str]) -> Any:
    """Some columns of a shard.

    Args:
        path: A shard.
        columns: Their names.

    Returns:
        A table of ``pyarrow``.

    Raises:
        DamagedFileError: It cannot be read.
        MissingExtraError: ``pyarrow`` is not installed.
    """
    pyarrow = require_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:  # read_table would import pandas first
            return file.read(columns=columns)
    except (OSError, pyarrow.ArrowException) as error:
        raise DamagedFileError(
            f"{path} cannot be read ({error}): the store has lost these rows. Delete the file; the next `embed` with "
            "the same data makes them again"
        ) from None
