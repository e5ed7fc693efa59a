"""A store's embeddings in the forms that other programs read: NumPy, Lance, and PostgreSQL's ``COPY``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from domainclip.errors import ConfigurationError, MissingExtraError
from domainclip.files import csv_text, replaced_directory, replaced_file, write_text
from domainclip.retrieval.store.shards import StoredRow, read_embeddings, read_rows, require_pyarrow
from domainclip.retrieval.store.store import EmbeddingStore

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def export(store: EmbeddingStore, path: Path) -> list[str]:
    """Write the embeddings of a store in the form that a file's suffix names. Rows without an embedding are left out.

    Args:
        store: The embeddings.
        path: ``.npy`` (beside it a ``.csv`` with the rows in the same order), ``.lance`` (a folder) or ``.copy`` (text
            for PostgreSQL with pgvector).

    Returns:
        Sentences that say what was written, and how it is read.

    Raises:
        ConfigurationError: The suffix is another.
        DamagedFileError: A shard cannot be read.
        MissingExtraError: ``lance`` is not installed.
        OSError: It cannot be written; what was there is as it was.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ConfigurationError(f"{path} does not end in one of {', '.join(FORMATS)}, the forms that are written")
    return FORMATS[suffix](store, path)


def _parts(store: EmbeddingStore) -> Iterator[tuple[list[StoredRow], np.ndarray]]:
    """The rows that have an embedding, and these, a shard at a time."""
    for path in store.paths:
        rows = read_rows(path)
        good = [at for at, row in enumerate(rows) if not row.error]
        yield [rows[at] for at in good], read_embeddings(path)[good]


def _count(store: EmbeddingStore) -> int:
    return store.generation.rows - store.generation.errors


def _write_npy(store: EmbeddingStore, path: Path) -> list[str]:
    header = {
        "descr": np.dtype(store.space.dtype).str,
        "fortran_order": False,
        "shape": (_count(store), store.space.dim),
    }
    rows: list[StoredRow] = []
    with replaced_file(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part, embeddings in _parts(store):
            rows += part
            file.write(np.ascontiguousarray(embeddings).tobytes())
    beside = path.with_suffix(".csv")
    write_text(beside, csv_text(("path", "label", "caption", "sha256"), [_cells(row) for row in rows]))
    return [f"Written: {path} (numpy.load) and {beside}, whose lines are its rows"]


def _cells(row: StoredRow) -> Sequence[str | None]:
    return row.path, row.label or None, row.caption or None, row.sha256


def _write_lance(store: EmbeddingStore, path: Path) -> list[str]:
    pyarrow = require_pyarrow()
    try:
        import lance
    except ImportError:
        raise MissingExtraError("pylance", "lance", f"Writing {path}") from None
    numbers = pyarrow.float16() if store.space.dtype == "float16" else pyarrow.float32()
    texts = [pyarrow.field(name, pyarrow.string()) for name in ("path", "label", "caption", "sha256")]
    schema = pyarrow.schema([*texts, pyarrow.field("embedding", pyarrow.list_(numbers, store.space.dim))])

    def batches() -> Iterator[Any]:
        for rows, embeddings in _parts(store):
            columns: list[Any] = [
                pyarrow.array(cells, pyarrow.string()) for cells in zip(*map(_cells, rows), strict=True)
            ]
            flat = pyarrow.array(np.ascontiguousarray(embeddings).reshape(-1))
            columns.append(pyarrow.FixedSizeListArray.from_arrays(flat, store.space.dim))
            if rows:
                yield pyarrow.record_batch(columns, schema=schema)

    with replaced_directory(path) as temporary:
        lance.write_dataset(batches(), os.fspath(temporary), schema=schema, mode="overwrite")
    return [f"Written: {path} (lance.dataset)"]


def _write_copy(store: EmbeddingStore, path: Path) -> list[str]:
    with replaced_file(path) as file:
        for rows, embeddings in _parts(store):
            for row, vector in zip(rows, embeddings, strict=True):
                cells = [r"\N" if cell is None else cell.translate(_ESCAPES) for cell in _cells(row)]
                numbers = ",".join(map(repr, vector.astype(np.float32).tolist()))
                file.write("\t".join([*cells, f"[{numbers}]"]).encode("utf-8") + b"\n")
    kind = "halfvec" if store.space.dtype == "float16" else "vector"
    return [
        f"Written: {path}",
        "CREATE EXTENSION IF NOT EXISTS vector;",
        f"CREATE TABLE images (path text, label text, caption text, sha256 text, embedding {kind}({store.space.dim}));",
        f"\\copy images FROM '{path}'",
    ]


FORMATS: Mapping[str, Callable[[EmbeddingStore, Path], list[str]]] = {
    ".npy": _write_npy,
    ".lance": _write_lance,
    ".copy": _write_copy,
}
"""What writes a form, by the suffix of a file."""
