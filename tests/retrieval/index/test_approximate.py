"""Approximate indexes rank by the vectors, know their recall for images and texts, and are not ready below one."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from domainclip.errors import DamagedFileError, IndexNotReadyError, MissingExtraError, MissingFileError
from domainclip.retrieval.index import ApproximateIndex, ExactIndex, FaissIndex, TurbovecIndex
from domainclip.retrieval.index.approximate import Engine
from domainclip.retrieval.index.faiss_index import FaissEngine
from index_cases import brute_force, queries_of, unit, vectors_of

REAL = [
    pytest.param(
        kind, marks=pytest.mark.skipif(not importlib.util.find_spec(package), reason=f"{package} is not installed")
    )
    for kind, package in ((TurbovecIndex, "turbovec"), (FaissIndex, "faiss"))
]
VECTORS = vectors_of("cones", 2000, 36, 0).astype(np.float16)


class EveryOther(Engine):
    """Sees the even rows alone, of those with a positive first number all; and writes nothing but its name."""

    name: ClassVar[str] = "every other"

    @classmethod
    def write(cls, vectors: np.ndarray, mean: np.ndarray, path: Path) -> None:
        np.save(path.with_suffix(".npy"), vectors)
        path.with_suffix(".npy").rename(path)

    @classmethod
    def load(cls, path: Path) -> EveryOther:
        engine = cls()
        engine.vectors = np.load(path).astype(np.float32)
        return engine

    def propose(self, queries: np.ndarray, count: int) -> np.ndarray:
        scores = queries @ self.vectors.T
        scores[:, 1::2] = np.where(queries[:, :1] > 0, scores[:, 1::2], -np.inf)
        rows = np.argsort(-scores, axis=1)[:, :count]
        return np.where(np.isfinite(np.take_along_axis(scores, rows, 1)), rows, -1)


class EveryOtherIndex(ApproximateIndex):
    engine_type: ClassVar[type[Engine]] = EveryOther


def seen(vectors: np.ndarray, sign: int) -> np.ndarray:
    vectors = vectors.astype(np.float32)
    return np.concatenate([sign * np.abs(vectors[:, :1]) - sign * -1e-3, vectors[:, 1:]], axis=1)


def test_recall_is_measured_for_each_kind_of_query(tmp_path: Path) -> None:
    vectors = vectors_of("random", 600, 24, 0).astype(np.float32)
    images, texts = seen(queries_of(vectors, 60, 1), 1), seen(queries_of(vectors, 60, 2), -1)
    index = EveryOtherIndex.build([vectors], tmp_path / "a", image_queries=images, text_queries=texts, least_recall=0)
    assert index.recalls["image"] == 1
    even = np.isin(brute_force(vectors, texts, 10)[0] % 2, 0).mean()
    assert index.recalls["text"] == pytest.approx(even, abs=1e-9) and 0.3 < even < 0.7

    index = EveryOtherIndex.build([vectors], tmp_path / "b", image_queries=images)
    assert index.recalls == {"image": 1.0, "text": None}


def test_below_its_recall_an_index_is_not_ready(tmp_path: Path) -> None:
    vectors = vectors_of("random", 600, 24, 0).astype(np.float32)
    texts = seen(queries_of(vectors, 60, 2), -1)
    with pytest.raises(
        IndexNotReadyError, match=r"not ready: of the 10 nearest rows of text queries it finds \d\d\.\d%"
    ):
        EveryOtherIndex.build([vectors], tmp_path / "a", image_queries=seen(vectors[:9], 1), text_queries=texts)
    with pytest.raises(IndexNotReadyError, match=r"98\.0% asked for"):
        EveryOtherIndex.open(tmp_path / "a")
    assert EveryOtherIndex.open(tmp_path / "a", 0.2).recalls["text"] < 0.98


def test_a_sampled_row_does_not_count_as_its_own_neighbour(tmp_path: Path) -> None:
    """Only even rows are found, whatever is asked: half of what is nearest, and no more as rows find themselves."""
    vectors = seen(vectors_of("random", 4000, 12, 0), -1)
    index = EveryOtherIndex.build([unit(vectors).astype(np.float32)], tmp_path / "a", least_recall=0)
    assert 0.42 < index.recalls["image"] < 0.58


def test_of_equal_rows_any_is_found(tmp_path: Path) -> None:
    vectors = np.repeat(seen(vectors_of("random", 100, 12, 0), -1), 40, axis=0).astype(np.float32)
    assert EveryOtherIndex.build([vectors], tmp_path / "a").recalls["image"] == 1


def test_what_is_proposed_is_ranked_exactly_and_filters_are_exact(tmp_path: Path) -> None:
    queries = seen(queries_of(VECTORS, 9, 1), 1)
    index = EveryOtherIndex.build([VECTORS], tmp_path / "a", image_queries=queries)
    rows, scores = brute_force(VECTORS, queries, 10)
    found = index.search(queries, 10)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.reranked.tolist() == [200] * 9

    unseen, allowed = seen(queries, -1), np.arange(2000) % 5 == 1
    rows, scores = brute_force(VECTORS, unseen, 10, allowed)
    np.testing.assert_array_equal(index.search(unseen, 10, allowed).rows, rows)


def test_where_too_few_are_proposed_the_search_is_exact(tmp_path: Path) -> None:
    unseen = seen(queries_of(VECTORS, 4, 1), -1)
    index = EveryOtherIndex.build([VECTORS], tmp_path / "a", least_recall=0)
    np.testing.assert_array_equal(index.search(unseen, 1500).rows, brute_force(VECTORS, unseen, 1500)[0])


def test_damage_is_said(tmp_path: Path) -> None:
    EveryOtherIndex.build([VECTORS], tmp_path / "a", least_recall=0)
    with pytest.raises(MissingFileError, match="one of every other, not of faiss"):
        FaissIndex.open(tmp_path / "a")
    with pytest.raises(MissingFileError, match="no approximate index"):
        EveryOtherIndex.open(tmp_path)
    content = bytearray((tmp_path / "a" / "engine.bin").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a" / "engine.bin").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"engine\.bin is damaged"):
        EveryOtherIndex.open(tmp_path / "a", 0)
    record = json.loads((tmp_path / "a" / "approximate.json").read_text())
    (tmp_path / "a" / "approximate.json").write_text(json.dumps({**record, "recalls": {"image": 1.0, "text": 1.0}}))
    with pytest.raises(DamagedFileError, match="another checksum"):
        EveryOtherIndex.open(tmp_path / "a", 0)


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EveryOther, "write", lambda vectors, mean, path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        EveryOtherIndex.build([VECTORS], tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", REAL)
def test_real_engines_find_nearly_all(tmp_path: Path, kind: type[ApproximateIndex]) -> None:
    texts = queries_of(VECTORS, 50, 1)[:-1]
    index = kind.build([VECTORS[:700], VECTORS[700:]], tmp_path / "a", text_queries=texts, least_recall=0.95)
    again = kind.open(tmp_path / "a", 0.95)
    rows, scores = brute_force(VECTORS, texts, 10)
    found = again.search(texts, 10)
    assert (found.rows == rows).mean() > 0.95
    assert again.recalls == index.recalls and index.recalls["text"] == pytest.approx(
        (found.scores >= scores[:, -1:]).mean()
    )
    assert (found.rows == index.search(texts, 10).rows).all()
    few = kind.build([VECTORS[:3]], tmp_path / "few")
    assert few.search(texts, 10).rows.shape == (len(texts), 3)


@pytest.mark.parametrize("kind", REAL[1:])
def test_inverted_lists_find_nearly_all(
    tmp_path: Path, kind: type[ApproximateIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domainclip.retrieval.index.faiss_index._GRAPH_AT_MOST", 100)
    index = kind.build([VECTORS], tmp_path / "a", least_recall=0.9)
    assert isinstance(index._engine, FaissEngine) and index._engine._index.nprobe == 64


@pytest.mark.parametrize(
    ("kind", "package", "extra"), [(TurbovecIndex, "turbovec", "search"), (FaissIndex, "faiss", "faiss")]
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[ApproximateIndex], package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'domainclip\[{extra}\]'"):
        kind.build([VECTORS], tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    assert len(ExactIndex.build([VECTORS], tmp_path / "a")) == 2000
