"""Two more questions to an index: which rows are nearly the same, and which vectors are unlike all that it holds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float32, Int64

from domainclip.errors import ShapeError
from domainclip.retrieval.index.exact import ExactIndex
from domainclip.retrieval.index.protocol import VectorIndex
from domainclip.retrieval.index.vectors import pieces

_ROWS_AT_ONCE = 64
_QUERIES_AT_ONCE = 4096


def near_duplicates(
    index: ExactIndex, threshold: float = 0.98
) -> Iterator[tuple[Int64[np.ndarray, "pairs 2"], Float32[np.ndarray, " pairs"]]]:
    """All pairs of rows that are at least as similar as ``threshold``, some rows at a time. The time grows with the
    square of the rows, the memory does not.

    Args:
        index: Whose rows are compared with each other.
        threshold: An inner product. Rows rounded to float16 have one of .999 with themselves at times.

    Yields:
        Pairs, the lower row first, in ascending order; and their inner products.
    """
    for piece in pieces(len(index), _ROWS_AT_ONCE):
        pairs, scores = [], []
        for row, (found, similar) in enumerate(index.above(index.vectors[piece], threshold, piece.start), piece.start):
            later = found > row
            pairs.append(np.stack([np.full(int(later.sum()), row), found[later]], axis=1))
            scores.append(similar[later])
        yield np.concatenate(pairs), np.concatenate(scores)


def most_unlike(
    reference: VectorIndex, vectors: Float[np.ndarray, "vectors dim"], count: int | None = None, k: int = 10
) -> tuple[Int64[np.ndarray, " count"], Float32[np.ndarray, " count"]]:
    """The vectors that are least like what an index holds: those whose k-th nearest row is farthest.

    This is the out-of-distribution score of Sun et al. 2022 ("Out-of-Distribution Detection with Deep Nearest
    Neighbors", ICML), who take the distance to the k-th neighbour among training features of length 1: the order is
    that of the cosine.

    Args:
        reference: Of the training images, for example.
        vectors: What is compared with it, one a row.
        count: How many are wanted; all, if left out.
        k: Which neighbour's similarity counts. With 1 a single odd training image hides those like it.

    Returns:
        Indices into ``vectors``, the most unlike first, equal ones in their order; and their similarity to the k-th
        nearest row.

    Raises:
        ShapeError: The vectors do not fit the index, or it has fewer than ``k`` rows.
    """
    similarity = np.empty(len(vectors), np.float32)
    for piece in pieces(len(vectors), _QUERIES_AT_ONCE):
        scores = reference.search(vectors[piece], k).scores
        if scores.shape[1] < k:
            raise ShapeError(f"There is no nearest row number {k}: the index has {scores.shape[1]}. Give a smaller k")
        similarity[piece] = scores[:, -1]
    order = np.argsort(similarity, kind="stable")[:count]
    return order, similarity[order]
