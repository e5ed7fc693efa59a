"""The exact index finds what every score in float64, sorted, has first: whatever the vectors, by either product."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainclip.errors import DataError, ShapeError
from domainclip.retrieval.index import ExactIndex, SearchResult, codes, exact, scan
from domainclip.retrieval.index.vectors import pieces
from index_cases import KINDS, brute_force, build, queries_of, unit, vectors_of

PRODUCTS = ("torch", "numpy")


@pytest.fixture(params=PRODUCTS)
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(codes, "by_torch", lambda: request.param == "torch")
    return str(request.param)


def assert_is_exact(index: ExactIndex, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> SearchResult:
    found = index.search(queries, k, allowed)
    rows, scores = brute_force(index.vectors, queries, k, allowed)
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.rows, rows)
    assert found.reranked.shape == (len(queries),)
    return found


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 400),
    dim=st.integers(1, 150),
    half=st.booleans(),
    queries=st.integers(1, 70),
    k=st.integers(1, 30),
    allowed=st.one_of(st.none(), st.floats(0, 1)),
    in_parts=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_nearest_rows_are_those_of_brute_force(
    kind: str, rows: int, dim: int, half: bool, queries: int, k: int, allowed: float | None, in_parts: bool, seed: int
) -> None:
    vectors = vectors_of(kind, rows, dim, seed).astype(np.float16 if half else np.float32)
    mask = None if allowed is None else np.random.default_rng(seed).random(rows) < allowed
    found = []
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        index = build(Path(folder) / "index", vectors)
        if in_parts:
            patch.setattr(scan, "_parts", lambda rows, queries: pieces(rows, 37))
            patch.setattr(scan, "_SEEDS", 50)
            patch.setattr(scan, "_SEED_RUN", 8)
            patch.setattr(exact, "_WAITING_AT_MOST", 40)
        for product in PRODUCTS:
            patch.setattr(codes, "by_torch", lambda product=product: product == "torch")
            found.append(assert_is_exact(ExactIndex.open(index.folder), queries_of(vectors, queries, seed), k, mask))
    np.testing.assert_array_equal(found[0].rows, found[1].rows)
    np.testing.assert_array_equal(found[0].scores, found[1].scores)


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(KINDS), dim=st.integers(1, 150), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_no_score_exceeds_its_bound(kind: str, dim: int, scale: float, seed: int) -> None:
    vectors = vectors_of(kind, 200, dim, seed).astype(np.float32)
    coder, losses = codes.Coder.fit(vectors), codes.Losses()
    parts = [coder.code_rows(part, losses) for part in (vectors[:77], vectors[77:])]
    rows = codes.Codes(*map(np.concatenate, zip(*parts, strict=True)))
    # What is lost of a row, and what lies outside of the directions, are themselves the queries that miss most.
    lost = vectors - coder.mean - (rows.codes * rows.steps[:, None]) @ coder.directions.T
    outside = lost - lost @ coder.directions @ coder.directions.T
    queries = np.concatenate([queries_of(vectors, 20, seed), unit(lost[:20]), unit(outside[:20])])
    coded = coder.code_queries((queries * scale).astype(np.float32), losses)
    exactly = (queries * scale).astype(np.float32).astype(np.float64) @ vectors.astype(np.float64).T
    for bounds in (codes._torch_bounds(coded, rows), codes._numpy_bounds(coded, rows)):
        for query, row in enumerate(bounds):
            assert (coded.scores(query, row) >= exactly[query]).all()
        assert (bounds >= coded.least(exactly.max(axis=1))).any(axis=1).all()


def test_bounds_hold_where_sums_pass_what_float32_counts(product: str, tmp_path: Path) -> None:
    vectors = vectors_of("random", 60, 2200, 1).astype(np.float32)
    assert_is_exact(build(tmp_path / "index", vectors), queries_of(vectors, 5, 1), 7)


def test_few_rows_are_looked_at_where_vectors_are_like_embeddings(product: str, tmp_path: Path) -> None:
    vectors = vectors_of("cones", 20_000, 128, 0).astype(np.float16)
    index = build(tmp_path / "index", vectors, 6000)
    found = assert_is_exact(index, queries_of(vectors, 8, 0)[:-1], 10)
    assert found.reranked.max() < 1000
    assert np.load(tmp_path / "index" / "coder.npz")["directions"].shape == (128, 64)


def test_few_rows_are_looked_at_in_a_tight_cone(product: str, tmp_path: Path) -> None:
    """All rows have a cosine of .999 with each other, as images of one kind may; the bounds are as much tighter."""
    vectors = unit(vectors_of("random", 1, 64, 1) + 0.03 * vectors_of("random", 5000, 64, 0)).astype(np.float32)
    found = assert_is_exact(build(tmp_path / "index", vectors, 5000), vectors[:5], 10)
    assert found.reranked.max() < 500


@pytest.mark.parametrize("allowed_fraction", [0.01, 0.2, 0.5, 1.0])
def test_filters_are_exact(product: str, tmp_path: Path, allowed_fraction: float) -> None:
    vectors = vectors_of("cones", 6000, 64, 0).astype(np.float16)
    index, allowed = build(tmp_path / "index", vectors), np.zeros(6000, np.bool_)
    allowed[np.random.default_rng(0).permutation(6000)[: int(6000 * allowed_fraction)]] = True
    found = assert_is_exact(index, queries_of(vectors, 40, 0), 10, allowed)
    assert allowed[found.rows].all()


def test_rows_in_one_place_alone_are_found(product: str, tmp_path: Path) -> None:
    """The first look at some rows sees none that is allowed, or none that is near."""
    vectors = vectors_of("random", 3000, 32, 0).astype(np.float32)
    index, allowed = build(tmp_path / "index", vectors), np.zeros(3000, np.bool_)
    allowed[2900:2903] = True
    found = assert_is_exact(index, queries_of(vectors, 3, 0), 10, allowed)
    assert found.rows.shape == (3, 3)
    assert index.search(vectors[:2], 10, np.zeros(3000, np.bool_)).rows.shape == (2, 0)


def test_equal_rows_keep_their_order(product: str, tmp_path: Path) -> None:
    vectors = np.tile(vectors_of("random", 40, 24, 3), (50, 1)).astype(np.float16)
    found = assert_is_exact(build(tmp_path / "index", vectors), vectors[7:8].astype(np.float32), 60)
    np.testing.assert_array_equal(found.rows[0, :50], np.arange(7, 2000, 40))


def test_k_may_be_all_rows_or_more(product: str, tmp_path: Path) -> None:
    vectors = vectors_of("random", 300, 20, 0).astype(np.float32)
    index = build(tmp_path / "index", vectors)
    for k in (299, 300, 301, 5000):
        assert assert_is_exact(index, queries_of(vectors, 3, 0), k).rows.shape == (3, min(k, 300))


def test_no_queries_have_no_answers(tmp_path: Path) -> None:
    index = build(tmp_path / "index", vectors_of("random", 30, 20, 0))
    found = index.search(np.empty((0, 20)), 5)
    assert found.rows.shape == found.scores.shape == (0, 5) and found.reranked.shape == (0,)


def test_queries_of_any_length_and_type(product: str, tmp_path: Path) -> None:
    vectors = vectors_of("cones", 500, 40, 0).astype(np.float32)
    index = build(tmp_path / "index", vectors)
    for factor in (1e-30, 1e-3, 1e3, 1e15):
        assert_is_exact(index, queries_of(vectors, 4, 0) * np.float32(factor), 5)
    doubled = index.search(vectors[:3].astype(np.float64), 5)
    np.testing.assert_array_equal(doubled.rows, index.search(vectors[:3], 5).rows)


def test_chunks_may_be_of_any_size(tmp_path: Path) -> None:
    vectors = vectors_of("random", 250, 20, 0)
    one, many = build(tmp_path / "one", vectors, 250), build(tmp_path / "many", vectors, 3)
    assert len(one) == 250 and one.dim == 20 and one.vectors.dtype == np.float32
    for file in ("vectors.bin", "codes.bin", "steps.bin", "tails.bin", "along.bin"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()
    empty_too = ExactIndex.build([vectors[:0], vectors], tmp_path / "empty")
    np.testing.assert_array_equal(empty_too.vectors, one.vectors)
    assert many.search(vectors[:1], 1).rows.tolist() == [[0]]


def test_what_cannot_be_searched_for_is_refused(tmp_path: Path) -> None:
    index = build(tmp_path / "index", vectors_of("random", 30, 20, 0))
    query = np.zeros((1, 20), np.float32)
    with pytest.raises(ShapeError, match=r"\[queries, 20\].*got \(1, 19\)"):
        index.search(query[:, 1:])
    with pytest.raises(ShapeError, match=r"got \(20,\)"):
        index.search(query[0])
    with pytest.raises(ShapeError, match="Query 1 contains NaN"):
        index.search(np.concatenate([query, query * np.nan]))
    with pytest.raises(ShapeError, match="k must be at least 1, got 0"):
        index.search(query, 0)
    with pytest.raises(ShapeError, match="each of the 30 rows, got bool of shape"):
        index.search(query, 1, np.ones(29, np.bool_))
    with pytest.raises(ShapeError, match="got int64"):
        index.search(query, 1, np.arange(30))


def test_vectors_that_cannot_be_stored_are_refused(tmp_path: Path) -> None:
    vectors = vectors_of("random", 30, 20, 0)
    broken = vectors.copy()
    broken[23, 4] = np.nan
    with pytest.raises(DataError, match="Row 23 contains NaN"):
        ExactIndex.build([vectors[:10], broken[10:]], tmp_path / "index")
    with pytest.raises(DataError, match="Row 0 contains NaN or infinity in float16"), np.errstate(over="ignore"):
        ExactIndex.build([vectors[:0].astype(np.float16), vectors * 1e9], tmp_path / "index")
    with pytest.raises(ShapeError, match=r"\[rows, 20\], got \(30, 19\) after 30 rows"):
        ExactIndex.build([vectors, vectors[:, 1:]], tmp_path / "index")
    with pytest.raises(ShapeError, match=r"got \(20,\) after 0 rows"):
        ExactIndex.build([vectors[0]], tmp_path / "index")
    for none in ([], [vectors[:0]]):
        with pytest.raises(DataError, match="no vectors"):
            ExactIndex.build(none, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_torch_is_not_needed(tmp_path: Path) -> None:
    code = """
import sys
import numpy as np
from domainclip.retrieval.index import ExactIndex
vectors = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32)
print(ExactIndex.build([vectors], sys.argv[1]).search(vectors[:3], 1).rows.ravel().tolist())
print([name for name in ("torch", "transformers", "faiss", "turbovec") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "i")], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[1:] == ["[]"] and done.stdout[0] == "[", done.stderr
    assert codes._torch_is_faster() in (True, False)
