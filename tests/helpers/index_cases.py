"""Vectors to search, and what a search has to find: every score in float64, sorted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from domainclip.retrieval.index import ExactIndex

KINDS = ("random", "cones", "duplicates", "equal", "axes", "near", "zeros", "outlier")


def unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def vectors_of(kind: str, rows: int, dim: int, seed: int) -> np.ndarray:
    """Rows of length 1, or 0, that are hard in some way."""
    draw = np.random.default_rng(seed)
    noise = draw.standard_normal((rows, dim))
    if kind == "cones":
        noise = noise * np.arange(1, dim + 1) ** -1.0 + unit(draw.standard_normal((1, dim)))
    elif kind == "duplicates":
        noise = noise[draw.integers(0, max(1, rows // 5), rows)]
    elif kind == "equal":
        noise = np.repeat(noise[:1], rows, axis=0)
    elif kind == "axes":
        noise = np.eye(dim)[draw.integers(0, dim, rows)] * draw.choice([-1, 1], (rows, 1))
    elif kind == "near":  # all but a few nearly alike
        noise = np.where(np.arange(rows)[:, None] % 7 == 3, noise, noise[:1] + 1e-3 * noise)
    elif kind == "zeros":
        noise[::3] = 0
    elif kind == "outlier":
        noise[:, 0] *= 100
    return unit(noise)


def queries_of(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows themselves, what lies between them, and something else; one all zeros among them."""
    draw = np.random.default_rng(seed)
    mixed = draw.standard_normal((count, len(vectors))) @ vectors
    queries = np.where(draw.random((count, 1)) < 0.3, vectors[draw.integers(0, len(vectors), count)], unit(mixed))
    queries = np.where(draw.random((count, 1)) < 0.3, unit(draw.standard_normal(queries.shape)), queries)
    queries[-1] = 0
    return queries.astype(np.float32)


def brute_force(
    stored: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores: float64 sums, rounded to float32, of equal ones the lower row first."""
    scores = (queries.astype(np.float64) @ stored.astype(np.float64).T).astype(np.float32)
    rows = np.arange(len(stored)) if allowed is None else np.flatnonzero(allowed)
    order = np.argsort(-scores[:, rows], axis=1, kind="stable")[:, :k]
    return rows[order], np.take_along_axis(scores[:, rows], order, 1)


def build(folder: Path, vectors: np.ndarray, chunk: int = 97) -> ExactIndex:
    return ExactIndex.build((vectors[start : start + chunk] for start in range(0, len(vectors), chunk)), folder)
