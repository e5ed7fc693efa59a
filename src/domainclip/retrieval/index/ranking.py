"""From rows that may be among the best to the best: their vectors decide, those with the highest bounds first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from domainclip.retrieval.index.codes import CodedQueries
from domainclip.retrieval.index.protocol import SearchResult
from domainclip.retrieval.index.vectors import best_first, exact_scores

_FIRST = 64
_LATER = 4096
"""Rows that are scored before bounds are compared again."""
_NONE = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)


class Hits:
    """The best rows of one query so far.

    Args:
        vectors: All rows.
        query: What is searched for.
        k: How many are wanted.
    """

    def __init__(self, vectors: Float[np.ndarray, "rows dim"], query: Float32[np.ndarray, " dim"], k: int) -> None:
        self._vectors, self._query, self._k = vectors, query.astype(np.float64), k
        self.rows, self.scores, self.reranked = np.empty(0, np.int64), np.empty(0, np.float32), 0

    @property
    def least(self) -> float:
        """The score that a further row must have at least."""
        return float(self.scores[-1]) if len(self.rows) == self._k else -np.inf

    def score(self, rows: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        """Score rows by their vectors.

        Args:
            rows: Which.

        Returns:
            Their scores.
        """
        self.reranked += len(rows)
        return exact_scores(self._vectors, rows, self._query)

    def consider(self, rows: Int64[np.ndarray, " n"], bounds: Float64[np.ndarray, " n"]) -> None:
        """Score rows, the one with the highest bound first, until the k-th score exceeds every bound left.

        Args:
            rows: None that was considered before.
            bounds: What their scores cannot exceed.
        """
        order = np.argsort(-bounds)
        rows, falling = rows[order], -bounds[order]
        done, size = 0, max(_FIRST, 2 * self._k)
        while (stop := min(done + size, int(np.searchsorted(falling, -self.least, side="right")))) > done:
            scores = np.concatenate([self.scores, self.score(rows[done:stop])])
            found = np.concatenate([self.rows, rows[done:stop]])
            best = best_first(scores, found, self._k)
            self.rows, self.scores = found[best], scores[best]
            done, size = stop, max(_LATER, self._k)


def result_of(hits: Sequence[Hits], k: int) -> SearchResult:
    """Put the hits of all queries together.

    Args:
        hits: Of each query.
        k: How many each has.

    Returns:
        The answer of a search.
    """
    return SearchResult(
        np.array([each.rows for each in hits], np.int64).reshape(len(hits), k),
        np.array([each.scores for each in hits], np.float32).reshape(len(hits), k),
        np.array([each.reranked for each in hits], np.int64),
    )


class Waiting:
    """Rows that a scan could not rule out, collected for all queries."""

    def __init__(self) -> None:
        self._parts, self.count = [_NONE], 0

    def add(
        self, queries: Int64[np.ndarray, " n"], rows: Int64[np.ndarray, " n"], bounds: Float32[np.ndarray, " n"]
    ) -> None:
        """Collect rows.

        Args:
            queries: Which query each is for.
            rows: Which rows.
            bounds: In units of the query's steps.
        """
        self._parts.append((queries, rows, bounds))
        self.count += len(rows)

    def take(self, coded: CodedQueries) -> list[tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]]:
        """What was collected, which is forgotten then.

        Args:
            coded: The queries.

        Returns:
            For each query its rows, and the scores that they cannot exceed.
        """
        queries, rows, bounds = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        order = np.argsort(queries, kind="stable")
        ends = np.searchsorted(queries[order], np.arange(len(coded.step) + 1))
        self._parts, self.count = [_NONE], 0
        each = [order[start:stop] for start, stop in pairwise(ends)]
        return [(rows[chosen], coded.scores(index, bounds[chosen])) for index, chosen in enumerate(each)]
