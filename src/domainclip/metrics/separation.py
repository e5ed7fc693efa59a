"""How well hits and misses can be told apart by their similarity, and what chance alone would reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from domainclip.errors import ShapeError


@dataclass(frozen=True)
class Separation:
    """``auroc`` in 0…1 (0.5 is chance), ``overlap`` in 0…1 (0 is best), ``threshold`` in units of the similarity."""

    auroc: float
    overlap: float
    threshold: float


def separation(hits: np.ndarray, misses: np.ndarray) -> Separation:
    """Compares the similarities of pairs that belong together with those of pairs that do not.

    AUROC is the probability that a hit is more similar than a miss, an equal one counting half (Hanley and McNeil
    1982). The overlap is the smallest sum of two error rates that a threshold can reach, hits below it and misses at or
    above it: 1 − J, with Youden's J (1950). Where the two densities cross once it is their common area, but it needs no
    bins. ``threshold`` is where it is reached.

    Args:
        hits: Similarities of pairs that belong together.
        misses: Of pairs that do not.

    Returns:
        How well they are told apart.

    Raises:
        ShapeError: One side is empty.
    """
    if not hits.size or not misses.size:
        raise ShapeError(
            f"There are {hits.size} hits and {misses.size} misses: comparing them needs at least one of each"
        )
    hits, misses = np.sort(hits, axis=None), np.sort(misses, axis=None)
    below, not_above = (np.searchsorted(misses, hits, side) for side in ("left", "right"))
    auroc = (below.mean() + not_above.mean()) / 2 / len(misses)
    # The best threshold is at a hit: raising it from one hit to the next only drops misses.
    found = 1 - np.searchsorted(hits, hits, "left") / len(hits)
    youden = found - (1 - below / len(misses))
    best = int(youden.argmax())
    return Separation(float(auroc), float(1 - max(0.0, youden[best])), float(hits[best]))


def chance_recall(hits_per_query: Sequence[int] | np.ndarray, n_candidates: int, max_k: int) -> np.ndarray:
    """R@1 … R@max_k of a random order, ``[max_k]``, in 0…1.

    A query with m hits among N candidates misses at K when the first K are all misses, so

        R@K = 1 − (N−m)/N · (N−m−1)/(N−1) · … · (N−m−K+1)/(N−K+1)

    averaged over the queries.

    Args:
        hits_per_query: How many candidates are hits, for each query.
        n_candidates: Of how many.
        max_k: The last K.

    Returns:
        R@1 to R@max_k.
    """
    hits, counts = np.unique(np.asarray(hits_per_query), return_counts=True)
    drawn = np.arange(max_k)
    left = np.maximum(n_candidates - hits[:, None] - drawn, 0) / np.maximum(n_candidates - drawn, 1)
    return np.average(1 - np.cumprod(left, axis=1), axis=0, weights=counts)
