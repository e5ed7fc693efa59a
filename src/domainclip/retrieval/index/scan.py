"""The rows that a search looks at, and those of them that their codes cannot rule out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from domainclip.retrieval.index.codes import CodedQueries, Codes, at_least, upper_bounds
from domainclip.retrieval.index.vectors import pieces

_BOUNDS_AT_ONCE = 2_097_152
"""8 MiB of float32: they stay in the cache while they are compared."""
_SEEDS = 65_536
"""Rows that are looked at first, for a score that the k best of all have at least."""
_SEED_RUN = 256
"""They are taken in runs, which are copied faster than single rows."""
_GATHERED = 0.25
"""Where fewer rows are allowed, their codes are copied together; else all rows are scanned."""

Survivors = tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]
"""Queries in ascending order, rows, and bounds."""


class AllRows:
    """All rows, or those from one on.

    Args:
        codes: Of all rows.
        first: The first that is looked at.
    """

    def __init__(self, codes: Codes, first: int = 0) -> None:
        self._codes, self._first = codes, first
        self.count = len(codes.steps) - first

    @cached_property
    def seeds(self) -> tuple[Int64[np.ndarray, " n"], Codes]:
        """Evenly spaced runs of rows, with their codes: kept, as every search begins with them."""
        runs = np.arange(0, self.count, _SEED_RUN)
        runs = runs[:: -(-len(runs) * _SEED_RUN // _SEEDS)]
        rows = (runs[:, None] + np.arange(_SEED_RUN)).ravel()
        rows = self._first + rows[rows < self.count]
        return rows, self._codes.take(rows)

    def survivors(self, coded: CodedQueries, least: Float64[np.ndarray, " queries"]) -> Iterator[Survivors]:
        """Scan the rows.

        Args:
            coded: The queries.
            least: The score that a row must be able to have, for each query; looked at anew for each part.

        Yields:
            Part by part, the rows that may have it.
        """
        for piece in _parts(self.count, len(least)):
            start = self._first + piece.start
            part = self._codes.part(slice(start, self._first + piece.stop))
            queries, found, bounds = at_least(upper_bounds(coded, part), coded.least(least))
            yield queries, start + found, bounds


class MostRows:
    """Many of the rows: all are scanned.

    Args:
        rows: All.
        allowed: Which of them count.
    """

    def __init__(self, rows: AllRows, allowed: Bool[np.ndarray, " rows"]) -> None:
        self._rows, self._allowed, self.count = rows, allowed, int(allowed.sum())

    @property
    def seeds(self) -> tuple[Int64[np.ndarray, " n"], Codes]:
        """Those of all rows that are allowed, with their codes."""
        rows, codes = self._rows.seeds
        chosen = np.flatnonzero(self._allowed[rows])
        return rows[chosen], codes.take(chosen)

    def survivors(self, coded: CodedQueries, least: Float64[np.ndarray, " queries"]) -> Iterator[Survivors]:
        """Scan the rows.

        Args:
            coded: The queries.
            least: The score that a row must be able to have, for each query; looked at anew for each part.

        Yields:
            Part by part, the rows that may have it.
        """
        for queries, rows, bounds in self._rows.survivors(coded, least):
            chosen = self._allowed[rows]
            yield queries[chosen], rows[chosen], bounds[chosen]


class FewRows:
    """Few of the rows: their codes alone are read.

    Args:
        codes: Of all rows.
        rows: Which of them count, ascending.
    """

    def __init__(self, codes: Codes, rows: Int64[np.ndarray, " n"]) -> None:
        self._codes, self._chosen, self.count = codes, rows, len(rows)

    @cached_property
    def seeds(self) -> tuple[Int64[np.ndarray, " n"], Codes]:
        """Evenly spaced rows, with their codes."""
        rows = self._chosen[:: max(1, -(-self.count // _SEEDS))]
        return rows, self._codes.take(rows)

    def survivors(self, coded: CodedQueries, least: Float64[np.ndarray, " queries"]) -> Iterator[Survivors]:
        """Scan the rows.

        Args:
            coded: The queries.
            least: The score that a row must be able to have, for each query; looked at anew for each part.

        Yields:
            Part by part, the rows that may have it.
        """
        for piece in _parts(self.count, len(least)):
            rows = self._chosen[piece]
            part = self.seeds[1].part(piece) if self.count <= _SEEDS else self._codes.take(rows)
            queries, found, bounds = at_least(upper_bounds(coded, part), coded.least(least))
            yield queries, rows[found], bounds


Scanned = AllRows | MostRows | FewRows


def scanned(all_rows: AllRows, codes: Codes, allowed: Bool[np.ndarray, " rows"] | None) -> Scanned:
    """Choose how the allowed rows are scanned.

    Args:
        all_rows: Of the index.
        codes: Of all rows.
        allowed: Which rows may be found; all, if None.

    Returns:
        The rows.
    """
    if allowed is None:
        return all_rows
    rows = np.flatnonzero(allowed)
    return FewRows(codes, rows) if len(rows) < _GATHERED * len(allowed) else MostRows(all_rows, allowed)


def _parts(rows: int, queries: int) -> Iterator[slice]:
    return pieces(rows, max(1024, _BOUNDS_AT_ONCE // queries))
