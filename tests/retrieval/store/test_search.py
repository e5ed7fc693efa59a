"""Searching a store: the same as brute force over its rows, with conditions, through changes of the data."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from domainclip.errors import ConfigurationError, ShapeError
from domainclip.retrieval import ImageTextRetrieval, SimilarityComputer
from domainclip.retrieval.retrieval import Gallery
from domainclip.retrieval.store.search import SearchableStore
from domainclip.retrieval.store.shards import StoredRow
from domainclip.retrieval.store.store import EmbeddingStore
from domainclip.retrieval.store.where import Condition
from store_cases import DIM, FakeEncoder, embed, stored_rows, vector_of

pytest.importorskip("pyarrow", reason="stores of embeddings are Parquet files")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number in range(40):
        path = folder / ("Line 3" if number % 3 else "Line 4") / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"bad file" if number in (0, 17) else b"image %d" % number)
        when = datetime.datetime(2026, 1, 1 + number % 28, 12).astimezone().timestamp()
        os.utime(path, (when, when))
    return folder


def rows_of(photos: Path) -> list[StoredRow]:
    from dataclasses import replace

    return [
        replace(row, label="crack" if at % 4 else "dent", caption=f"a caption {at}")
        for at, row in enumerate(stored_rows(photos))
    ]


def brute_force(folder: Path, query: np.ndarray, k: int, meets=lambda row: True) -> list[tuple[str, float]]:  # type: ignore[no-untyped-def]
    store = EmbeddingStore.open(folder)
    rows, vectors = list(store.rows()), np.concatenate(list(store.embeddings())).astype(np.float64)
    found = [
        (row.path, float(vector @ query))
        for row, vector in zip(rows, vectors, strict=True)
        if not row.error and meets(row)
    ]
    return sorted(found, key=lambda each: -each[1])[:k]


def found_by(store: SearchableStore, query: np.ndarray, k: int, *where: str) -> list[tuple[str, float]]:
    (answer,) = store.search(query[None], k, [Condition.parse(each) for each in where])
    return [(hit.row.path, hit.score) for hit in answer.hits]


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    embed(tmp_path / "store", rows_of(photos), FakeEncoder(), shard_rows=7)
    return tmp_path / "store"


QUERY = vector_of(b"a query").astype(np.float32)


@pytest.mark.parametrize("k", [1, 5, 38, 100])
def test_the_nearest_rows_are_found(folder: Path, k: int) -> None:
    found, wanted = found_by(SearchableStore.open(folder), QUERY, k), brute_force(folder, QUERY, k)
    assert [path for path, _ in found] == [path for path, _ in wanted]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in wanted], atol=1e-6)


@pytest.mark.parametrize(
    ("conditions", "meets"),
    [
        (["label=crack"], lambda row: row.label == "crack"),
        (["label != crack"], lambda row: row.label != "crack"),
        (["path~line 3/"], lambda row: "/Line 3/" in row.path),
        (["caption~CAPTION 1"], lambda row: "caption 1" in row.caption),
        (["modified>=2026-01-10"], lambda row: row.modified_ns >= day(10)),
        (["modified>2026-01-10"], lambda row: row.modified_ns >= day(11)),
        (["modified<2026-01-10"], lambda row: row.modified_ns < day(10)),
        (["modified<=2026-01-10", "label=dent"], lambda row: row.modified_ns < day(11) and row.label == "dent"),
        (["modified>2026-01-10T12:00"], lambda row: row.modified_ns > day(10) + 12 * 3600 * 10**9),
    ],
)
def test_conditions_are_met(folder: Path, conditions: list[str], meets) -> None:  # type: ignore[no-untyped-def]
    found = found_by(SearchableStore.open(folder), QUERY, 100, *conditions)
    wanted = brute_force(folder, QUERY, 100, meets)
    assert 0 < len(found) < 38
    assert [path for path, _ in found] == [path for path, _ in wanted]


def day(number: int) -> int:
    return int(datetime.datetime(2026, 1, number).astimezone().timestamp() * 1e9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label", "cannot be read"),
        ("lable=x", "did you mean 'label'"),
        ("colour=red", "choose one of label, caption, path, modified"),
        ("label>3", "label is compared by =, !=, ~"),
        ("modified=2026-01-01", "modified is compared by >=, <=, >, <"),
        ("modified>yesterday", "needs a date"),
    ],
)
def test_other_conditions_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Condition.parse(text)


def test_no_row_meets_a_condition(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"No row of .* meets label=rust and path~x"):
        found_by(SearchableStore.open(folder), QUERY, 3, "label=rust", "path~x")
    with pytest.raises(ShapeError):
        SearchableStore.open(folder).search(np.zeros((1, DIM + 1), np.float32))


def test_the_index_follows_the_store(photos: Path, folder: Path) -> None:
    before = found_by(SearchableStore.open(folder), QUERY, 3)
    Path(before[0][0]).unlink()
    (photos / "new.jpg").write_bytes(b"a query")  # as near as can be
    embed(folder, rows_of(photos), FakeEncoder(), shard_rows=7)
    after = found_by(SearchableStore.open(folder), QUERY, 3)
    assert after[0] == (str(photos / "new.jpg"), pytest.approx(1, abs=1e-6))
    assert before[0][0] not in [path for path, _ in after]


def test_a_store_without_an_image_cannot_be_searched(tmp_path: Path) -> None:
    embed(tmp_path / "store", [StoredRow("/gone.jpg", "", "", "", "it is not there", -1, 0)], FakeEncoder())
    with pytest.raises(ConfigurationError, match="nothing to search"):
        SearchableStore.open(tmp_path / "store")


def test_near_duplicates_and_what_is_unlike(photos: Path, folder: Path, tmp_path: Path) -> None:
    store = EmbeddingStore.open(folder)
    rows = list(store.rows())
    vectors = np.concatenate(list(store.embeddings())).astype(np.float64)
    cosines = vectors @ vectors.T
    threshold = float(np.quantile(cosines[cosines > 0], 0.9))
    good = [at for at, row in enumerate(rows) if not row.error]
    wanted = {(rows[a].path, rows[b].path) for a in good for b in good if a < b and cosines[a, b] >= threshold}
    found = list(SearchableStore.open(folder).near_duplicates(threshold))
    assert {(first.path, other.path) for first, other, _ in found} == wanted
    odd = photos.parent / "odd"
    odd.mkdir()
    for number in range(3):
        (odd / f"{number}.jpg").write_bytes(b"odd %d" % number)
    embed(tmp_path / "other", stored_rows(odd), FakeEncoder())
    others = np.stack([vector_of(path.read_bytes()) for path in sorted(odd.iterdir())]).astype(np.float64)
    tenth = np.sort(others @ vectors[good].T, axis=1)[:, -10]
    hits = SearchableStore.open(tmp_path / "other").most_unlike(SearchableStore.open(folder), 3)
    assert [Path(hit.row.path).name for hit in hits] == [f"{at}.jpg" for at in np.argsort(tenth)]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(tenth), atol=1e-6)


class OfTexts:
    """Counts what it encodes."""

    def __init__(self) -> None:
        self.texts = self.images = 0

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        self.texts += len(texts)
        return torch.tensor(np.stack([2 * vector_of(text.encode()) for text in texts]))

    def encode_images(self, images: list[Path]) -> torch.Tensor:
        self.images += len(images)
        return torch.tensor(np.stack([vector_of(Path(image).read_bytes()) for image in images]))


def test_retrieval_takes_a_store_and_encodes_none_of_its_images(folder: Path) -> None:
    encoder = OfTexts()
    hits = ImageTextRetrieval(encoder).retrieve_image("a query", SearchableStore.open(folder), top_k=4)
    wanted = brute_force(folder, QUERY, 4)
    assert [str(hit.item) for hit in hits] == [path for path, _ in wanted]
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in wanted], abs=1e-6)
    assert (encoder.texts, encoder.images) == (1, 0)
    with pytest.raises(ConfigurationError, match="by the cosine, not by"):
        ImageTextRetrieval(encoder, SimilarityComputer("dot")).retrieve_image("a", SearchableStore.open(folder))


def test_a_gallery_is_encoded_once(photos: Path) -> None:
    encoder = OfTexts()
    search = ImageTextRetrieval(encoder)
    paths = sorted(path for path in photos.rglob("*.jpg") if path.read_bytes() != b"bad file")
    images, texts = search.embed_images(paths), search.embed_texts(["one", "other"])
    plain = search.retrieve_image(["one", "other"], paths, top_k=3)
    encoder.images = encoder.texts = 0
    assert search.retrieve_image(["one", "other"], images, top_k=3) == plain
    assert (encoder.images, encoder.texts) == (0, 2)
    assert search.retrieve_text(paths[0], texts) == search.retrieve_text(paths[0], ["one", "other"])
    own = Gallery(["first", "second"], texts.embeddings)
    assert search.retrieve_text(paths[0], own)[0][0] in ("first", "second")
    with pytest.raises(ShapeError):
        Gallery(paths, texts.embeddings)


@pytest.mark.parametrize("engine", ["turbovec", "faiss"])
def test_approximate_engines_know_their_recall(folder: Path, engine: str) -> None:
    pytest.importorskip(engine, reason="an extra")
    asked: list[str] = []

    def encode(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return np.stack([vector_of(text.encode()) for text in texts]).astype(np.float32)

    store = SearchableStore.open(folder, engine, encode)
    assert {"crack", "dent"} < set(asked)
    assert [path for path, _ in found_by(store, QUERY, 5)] == [path for path, _ in brute_force(folder, QUERY, 5)]
    asked.clear()
    SearchableStore.open(folder, engine, encode)
    assert asked == []


def test_an_unknown_engine_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="choose one of exact, turbovec, faiss"):
        SearchableStore.open(folder, "annoy")
