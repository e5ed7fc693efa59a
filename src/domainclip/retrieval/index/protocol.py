"""What every vector index does, and what it answers with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from domainclip.errors import ShapeError


@dataclass(frozen=True)
class SearchResult:
    """The nearest rows of each query, the best first.

    There are ``k`` hits for each query, or as many as there are rows that may be found, which are the same for all.

    Args:
        rows: Their row numbers; of equal scores the lower one comes first.
        scores: Their inner products with the query, summed in float64.
        reranked: How many rows' scores were computed from the vectors themselves, for each query.
    """

    rows: Int64[np.ndarray, "queries k"]
    scores: Float32[np.ndarray, "queries k"]
    reranked: Int64[np.ndarray, " queries"]


class VectorIndex(Protocol):
    """Vectors on a disk, row after row, searched by the inner product: the cosine, as embeddings have length 1."""

    @classmethod
    def build(cls, chunks: Iterable[Float[np.ndarray, "chunk dim"]], folder: Path) -> Self:
        """Write an index, whole or not at all.

        Args:
            chunks: The rows in their order, some at a time; the first chunk's type (float16 or float32) is the
                stored one.
            folder: Where it is written. An earlier index is replaced.

        Returns:
            The index, opened.

        Raises:
            DataError: There are no rows, or one has NaN or infinity.
            ShapeError: A chunk is not 2D, or has another dimension than the first.
            OSError: It cannot be written.
        """
        ...

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open an index without reading its large files, which are mapped into memory.

        Args:
            folder: Where it was built.

        Returns:
            The index.

        Raises:
            MissingFileError: There is no index.
            DamagedFileError: A file is not as it was written.
            IndexNotReadyError: It is approximate, and its recall is below what is asked for.
        """
        ...

    def search(
        self,
        queries: Float[np.ndarray, "queries dim"],
        k: int = 10,
        allowed: Bool[np.ndarray, " rows"] | None = None,
    ) -> SearchResult:
        """Find the nearest rows.

        Args:
            queries: One a row.
            k: Hits for each, at least 1.
            allowed: Which rows may be found; all, if left out.

        Returns:
            The hits.

        Raises:
            ShapeError: ``queries``, ``k`` or ``allowed`` does not fit the index.
        """
        ...


def checked_queries(queries: np.ndarray, dim: int) -> Float32[np.ndarray, "queries dim"]:
    """Check what is searched for.

    Args:
        queries: One a row, of any float type.
        dim: Of the index.

    Returns:
        The queries in float32.

    Raises:
        ShapeError: They are not 2D, have another dimension, or contain NaN or infinity.
    """
    queries = np.asarray(queries)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ShapeError(
            f"Expected queries of shape [queries, {dim}], as the index has {dim} dimensions, got {queries.shape}"
        )
    queries = queries.astype(np.float32)
    if not np.isfinite(queries).all():
        row = int(np.isfinite(queries).all(axis=1).argmin())
        raise ShapeError(f"Query {row} contains NaN or infinity, so nothing is near to it")
    return queries


def checked_k(k: int) -> int:
    """Check how many hits are asked for.

    Args:
        k: Hits for each query.

    Returns:
        The same.

    Raises:
        ShapeError: It is below 1.
    """
    if k < 1:
        raise ShapeError(f"k must be at least 1, got {k}")
    return k


def checked_mask(allowed: np.ndarray, rows: int) -> Bool[np.ndarray, " rows"]:
    """Check which rows may be found.

    Args:
        allowed: True where a row may be.
        rows: Of the index.

    Returns:
        The same.

    Raises:
        ShapeError: It is not one truth value for each row.
    """
    allowed = np.asarray(allowed)
    if allowed.dtype != np.bool_ or allowed.shape != (rows,):
        raise ShapeError(
            f"Expected allowed as one truth value for each of the {rows} rows, got {allowed.dtype} of shape "
            f"{allowed.shape}"
        )
    return allowed
