"""What other programs read of a store, read back."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from domainclip.errors import ConfigurationError
from domainclip.retrieval.store.export import export
from domainclip.retrieval.store.store import EmbeddingStore
from store_cases import FakeEncoder, embed, stored_rows, vector_of

pytest.importorskip("pyarrow", reason="stores of embeddings are Parquet files")

CAPTION = 'a\ttab, a\nline, a \\ and "quotes"'


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    (tmp_path / "photos").mkdir()
    for number in range(9):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(b"bad" if number == 4 else b"image %d" % number)
    rows = [replace(row, label="=1+1", caption=CAPTION) for row in stored_rows(tmp_path / "photos")]
    embed(tmp_path / "store", [replace(rows[0], label=""), *rows[1:]], FakeEncoder(), shard_rows=4)
    return EmbeddingStore.open(tmp_path / "store")


def good(store: EmbeddingStore) -> tuple[list[str], np.ndarray]:
    paths = [row.path for row in store.rows() if not row.error]
    assert len(paths) == 8
    return paths, np.stack([vector_of(Path(path).read_bytes()) for path in paths])


def test_numpy(store: EmbeddingStore, tmp_path: Path) -> None:
    said = export(store, tmp_path / "out.npy")
    paths, vectors = good(store)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), vectors)
    assert np.load(tmp_path / "out.npy", mmap_mode="r").dtype == np.float32
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == paths
    assert (rows[0]["label"], rows[1]["label"], rows[1]["caption"]) == ("", "'=1+1", CAPTION)
    assert "out.csv" in said[0]


def test_postgresql(store: EmbeddingStore, tmp_path: Path) -> None:
    """By the rules of COPY's text format: cells by tabs, backslashes for what would end one, \\N for null."""
    said = export(store, tmp_path / "out.copy")
    undo = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}

    def read(cell: str) -> str | None:
        if cell == r"\N":
            return None
        found, at = "", 0
        while at < len(cell):
            pair = cell[at : at + 2]
            found += undo.get(pair, cell[at])
            at += 2 if pair in undo else 1
        return found

    lines = (tmp_path / "out.copy").read_text().split("\n")
    assert lines.pop() == ""
    paths, vectors = good(store)
    assert len(lines) == 8
    for line, path, vector in zip(lines, paths, vectors, strict=True):
        cells = [read(cell) for cell in line.split("\t")]
        assert cells[0] == path
        assert cells[1] == (None if path == paths[0] else "=1+1")
        assert cells[2] == CAPTION
        assert cells[4] is not None
        np.testing.assert_array_equal(np.array(cells[4].strip("[]").split(","), np.float32), vector)
    assert "vector(8)" in said[2]


def test_lance(store: EmbeddingStore, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance", reason="needs the extra 'lance'")
    export(store, tmp_path / "out.lance")
    export(store, tmp_path / "out.lance")
    table = lance.dataset(tmp_path / "out.lance").to_table().to_pydict()
    paths, vectors = good(store)
    assert table["path"] == paths
    np.testing.assert_array_equal(np.array(table["embedding"], np.float32), vectors)
    assert table["caption"] == [CAPTION] * 8


def test_another_form_is_refused(store: EmbeddingStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\.npy, \.lance, \.copy"):
        export(store, tmp_path / "out.pkl")
