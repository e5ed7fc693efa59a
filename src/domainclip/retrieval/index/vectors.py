"""The vectors of an index themselves: written in chunks, mapped into memory, scored and ranked exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from domainclip.errors import DamagedFileError, DataError, ShapeError

_AT_ONCE = 4096
"""Rows that are widened to float64 at once: 16 MiB of 512 dimensions."""


def write_vectors(chunks: Iterable[np.ndarray], path: Path) -> tuple[int, int, str]:
    """Write rows one after another.

    Args:
        chunks: ``[rows, dim]`` each, float16 or wider.
        path: The file.

    Returns:
        Rows, dimensions, and the type they are stored in: that of the first chunk, at most float32.

    Raises:
        DataError: There are no rows, or one has NaN or infinity.
        ShapeError: A chunk is not 2D, or has another dimension than the first.
    """
    rows, dim, dtype = 0, 0, "float32"
    with open(path, "wb") as handle:
        for chunk in map(np.asarray, chunks):
            if chunk.ndim != 2 or chunk.shape[1] == 0 or (dim and chunk.shape[1] != dim):
                raise ShapeError(f"Expected vectors [rows, {dim or 'dim'}], got {chunk.shape} after {rows} rows")
            if not dim:
                dim, dtype = chunk.shape[1], "float16" if chunk.dtype == np.float16 else "float32"
            stored = chunk.astype(dtype)
            finite = np.isfinite(stored).all(axis=1)
            if not finite.all():
                raise DataError(
                    f"Row {rows + int(finite.argmin())} contains NaN or infinity in {dtype}: leave it out of the "
                    "index, or give zeros and do not allow it in searches"
                )
            handle.write(stored.tobytes())
            rows += len(stored)
    if not rows:
        raise DataError("There are no vectors to build an index of")
    return rows, dim, dtype


def mapped(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Map a file of numbers into memory; nothing is read until it is needed, and nothing is written back.

    Args:
        path: The file.
        dtype: Of its numbers.
        shape: Of the array.

    Returns:
        The array.

    Raises:
        DamagedFileError: The file is missing, or has another size.
    """
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        found = path.stat().st_size
        if found == expected:
            # Copy-on-write and not read-only: torch takes no array that it could not write to without a warning.
            return np.asarray(np.memmap(path, dtype, "c", shape=shape))
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror or error}. Build the index anew") from error
    raise DamagedFileError(f"{path} is damaged: it has {found:,} bytes instead of {expected:,}. Build the index anew")


def exact_scores(
    vectors: Float[np.ndarray, "rows dim"], chosen: Int64[np.ndarray, " chosen"], query: Float64[np.ndarray, " dim"]
) -> Float32[np.ndarray, " chosen"]:
    """Inner products of some rows with a query.

    They are summed in float64, each row in the same order: what is mathematically equal is equal in float32, wherever
    the rows stand, but for one case in a hundred million.

    Args:
        vectors: All rows.
        chosen: Which of them.
        query: One vector.

    Returns:
        A score for each chosen row.
    """
    scores = np.empty(len(chosen), np.float32)
    for start in range(0, len(chosen), _AT_ONCE):
        rows = vectors.take(chosen[start : start + _AT_ONCE], axis=0).astype(np.float64)
        scores[start : start + len(rows)] = np.einsum("rd,d->r", rows, query)
    return scores


def best_first(scores: Float32[np.ndarray, " n"], rows: Int64[np.ndarray, " n"], k: int) -> Int64[np.ndarray, " k"]:
    """The order of the best.

    Args:
        scores: Larger is better.
        rows: Of equal scores the lower row comes first.
        k: At most so many.

    Returns:
        Indices into both.
    """
    return np.lexsort((rows, -scores))[:k]


def pieces(rows: int, size: int) -> Iterator[slice]:
    """Cut rows into consecutive pieces.

    Args:
        rows: How many there are.
        size: Of a piece; the last may be smaller.

    Yields:
        A slice for each.
    """
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
