"""Fewer points of a curve that look the same."""

from __future__ import annotations

import itertools

import numpy as np

POINTS = 400
"""Of a curve at most: more than a chart has pixels for, in a page below 1 MB."""


def kept_points(values: np.ndarray, points: int = POINTS) -> np.ndarray:
    """Which points of a curve to draw: the first, the last, and the lowest and the highest of each stretch.

    Args:
        values: ``[n]``, float; NaN where there is none.
        points: At most so many, 4 or more.

    Returns:
        Their positions, in order. All of them where there are no more than ``points``; a stretch without any number
        keeps its first, so that the gap is seen.
    """
    n = len(values)
    if n <= points:
        return np.arange(n)
    edges = np.linspace(0, n, (points - 2) // 2 + 1).astype(int)
    low = np.where(np.isnan(values), np.inf, values)
    high = np.where(np.isnan(values), -np.inf, values)
    kept = {0, n - 1}
    for start, stop in itertools.pairwise(edges):
        kept.add(start + int(low[start:stop].argmin()))
        kept.add(start + int(high[start:stop].argmax()))
    return np.array(sorted(kept))
