"""A store of embeddings without a model: the embedding of a file is made of its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from domainclip.retrieval.store.plan import Plan, with_file_state
from domainclip.retrieval.store.shards import StoredRow
from domainclip.retrieval.store.store import EmbeddingStore, Space
from domainclip.retrieval.store.work import EmbeddingWork

DIM = 8
SPACE = Space("a" * 64, DIM, "float32", "a model", "general")


def vector_of(content: bytes) -> np.ndarray:
    """Eight numbers of length 1."""
    numbers = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)[:DIM].astype(np.float32) + 1
    return numbers / np.linalg.norm(numbers)


@dataclass
class FakeEncoder:
    """Files that begin with "bad" cannot be read. ``seen`` counts what went through it."""

    seen: list[Path] = field(default_factory=list)
    batch: int = 3

    def __call__(self, paths: Sequence[Path]) -> Iterator[tuple[np.ndarray, list[str], list[str]]]:
        for start in range(0, len(paths), self.batch):
            part = list(paths[start : start + self.batch])
            self.seen += part
            contents = [path.read_bytes() if path.exists() else b"bad" for path in part]
            problems = [
                f"{path}: bad" if each.startswith(b"bad") else "" for path, each in zip(part, contents, strict=True)
            ]
            good = [vector_of(each) for each, problem in zip(contents, problems, strict=True) if not problem]
            yield np.array(good).reshape(-1, DIM), [hashlib.sha256(each).hexdigest() for each in contents], problems


def stored_rows(folder: Path, label: str = "") -> list[StoredRow]:
    """All files of a folder and its folders as rows."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [with_file_state(StoredRow(str(path), "", label, "", "", -1, 0)) for path in paths]


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def embed(
    folder: Path, rows: Sequence[StoredRow], encode: FakeEncoder, *, shard_rows: int = 4, retry: bool = False
) -> Plan | None:
    """Bring a store up to rows, as ``run_embedding`` does; the plan that was carried out."""
    work = EmbeddingWork(EmbeddingStore.create(folder, SPACE), lease_seconds=30.0)
    plan = work.plan(rows, digest_of, shard_rows, retry)
    if plan is not None:
        work.run(plan, encode)
    return plan


def contents_of(folder: Path) -> dict[str, np.ndarray | None]:
    """Embedding by path of all rows, None for those that cannot be read; no path twice."""
    store = EmbeddingStore.open(folder)
    rows = list(store.rows())
    embeddings = np.concatenate(list(store.embeddings())) if rows else np.empty((0, DIM))
    assert len({row.path for row in rows}) == len(rows) == len(embeddings) == store.generation.rows
    return {row.path: None if row.error else each for row, each in zip(rows, embeddings, strict=True)}
