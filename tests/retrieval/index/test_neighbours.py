"""Near duplicates and what is most unlike, against every pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from domainclip.errors import ShapeError
from domainclip.retrieval.index import most_unlike, near_duplicates
from index_cases import KINDS, brute_force, build, queries_of, vectors_of


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [0.3, 0.98])
def test_near_duplicates_are_all_pairs_above_the_threshold(tmp_path: Path, kind: str, threshold: float) -> None:
    vectors = vectors_of(kind, 150, 20, 0).astype(np.float16)
    blocks = list(near_duplicates(build(tmp_path / "index", vectors), threshold))
    pairs, scores = np.concatenate([block[0] for block in blocks]), np.concatenate([block[1] for block in blocks])
    every = (vectors.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    expected = np.argwhere(np.triu(every >= np.float32(threshold), 1))
    np.testing.assert_array_equal(pairs, expected)
    np.testing.assert_array_equal(scores, every[tuple(expected.T)])
    assert len(blocks) == 3


def test_rows_above_a_score_from_a_row_on(tmp_path: Path) -> None:
    vectors = vectors_of("random", 100, 10, 0).astype(np.float32)
    index = build(tmp_path / "index", vectors)
    ((rows, scores),) = index.above(vectors[:1], -2.0, 97)
    assert rows.tolist() == [97, 98, 99]
    np.testing.assert_array_equal(scores, (vectors[97:].astype(np.float64) @ vectors[0]).astype(np.float32))
    assert [len(rows) for rows, _ in index.above(vectors[:3], -2.0, 100)] == [0, 0, 0]
    assert [len(rows) for rows, _ in index.above(vectors[:1], 2.0)] == [0]


@pytest.mark.parametrize("k", [1, 7])
def test_most_unlike_are_farthest_from_their_kth_neighbour(tmp_path: Path, k: int) -> None:
    vectors = vectors_of("cones", 300, 20, 0).astype(np.float32)
    others = queries_of(vectors, 40, 1)
    index = build(tmp_path / "index", vectors)
    similarity = brute_force(vectors, others, k)[1][:, -1]
    order, found = most_unlike(index, others, 10, k)
    np.testing.assert_array_equal(order, np.argsort(similarity, kind="stable")[:10])
    np.testing.assert_array_equal(found, similarity[order])
    assert len(most_unlike(index, others, k=k)[0]) == 40


def test_most_unlike_needs_k_rows(tmp_path: Path) -> None:
    vectors = vectors_of("random", 5, 8, 0).astype(np.float32)
    with pytest.raises(ShapeError, match="the index has 5"):
        most_unlike(build(tmp_path / "index", vectors), vectors, k=6)
