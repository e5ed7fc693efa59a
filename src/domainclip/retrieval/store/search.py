"""Searching a store: its index, the rows that may be found, and what is known of those that were."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int64

from domainclip.errors import ConfigurationError
from domainclip.files import replaced_directory, write_json
from domainclip.retrieval.index.approximate import ApproximateIndex
from domainclip.retrieval.index.exact import ExactIndex
from domainclip.retrieval.index.faiss_index import FaissIndex
from domainclip.retrieval.index.neighbours import most_unlike, near_duplicates
from domainclip.retrieval.index.protocol import VectorIndex
from domainclip.retrieval.index.turbovec_index import TurbovecIndex
from domainclip.retrieval.index.vectors import pieces
from domainclip.retrieval.store.shards import ERROR, StoredRow, read_columns, read_embeddings, read_rows
from domainclip.retrieval.store.store import INDEX, EmbeddingStore
from domainclip.retrieval.store.where import Condition

EXACT = "exact"
ENGINES: dict[str, type[ApproximateIndex]] = {"turbovec": TurbovecIndex, "faiss": FaissIndex}
"""Approximate indexes, by the names of their packages."""
_CHUNK, _QUERIES = 65_536, 256
_STATE, _ROWS = "state.json", "rows.npy"


@dataclass(frozen=True)
class StoreHit:
    """One answer: a row of the store, its score (a cosine), and its number among the rows that have an embedding."""

    row: StoredRow
    score: float
    index: int


@dataclass(frozen=True)
class StoreHits:
    """The answers to one query, the best first, and of how many rows the score was computed exactly."""

    hits: list[StoreHit]
    reranked: int


class SearchableStore:
    """A store with its index.

    Args:
        store: The embeddings.
        index: Of the rows that have one.
        rows: The number in the store of each row of the index, ascending.
    """

    def __init__(self, store: EmbeddingStore, index: VectorIndex, rows: Int64[np.ndarray, " indexed"]) -> None:
        self.store, self.index, self._rows = store, index, rows
        self._starts = np.cumsum([0, *(shard.rows for shard in store.generation.shards)])

    @classmethod
    def open(
        cls, folder: str | Path, engine: str = EXACT, encode_texts: Callable[[list[str]], np.ndarray] | None = None
    ) -> SearchableStore:
        """Open a store for searching. Its index is made where it is missing, or of an earlier state.

        Args:
            folder: What ``domainclip embed`` has written.
            engine: ``exact``, or of ``ENGINES`` one that finds nearly all of the nearest, sooner.
            encode_texts: Encodes some of the store's captions and labels, with which the recall of such an engine for
                texts is measured; without it that is not known.

        Returns:
            The store with its index.

        Raises:
            ConfigurationError: There is no store, nothing in it can be searched, or the engine is unknown.
            IndexNotReadyError: The engine finds too few of the nearest rows.
            MissingExtraError: The engine is not installed.
            DamagedFileError: A file is not as it was written.
            OSError: The index cannot be written.
        """
        if engine not in (EXACT, *ENGINES):
            raise ConfigurationError(f"Invalid engine {engine!r}: choose one of {', '.join((EXACT, *ENGINES))}")
        store = EmbeddingStore.open(folder)
        place = store.folder / INDEX
        if _state_of(place) != store.generation.number:
            build_index(store)
        exact = ExactIndex.open(place / EXACT)
        index: VectorIndex = exact
        if engine != EXACT:
            if not (place / engine).is_dir():
                texts = _texts_of(store)
                found = encode_texts(texts) if encode_texts is not None and texts else None
                chunks = (exact.vectors[piece] for piece in pieces(len(exact), _CHUNK))
                ENGINES[engine].build(chunks, place / engine, text_queries=found, least_recall=0.0)
            index = ENGINES[engine].open(place / engine)
        return cls(store, index, np.load(place / _ROWS, mmap_mode="r"))

    def __len__(self) -> int:
        return len(self._rows)

    def search(
        self, queries: Float[np.ndarray, "queries dim"], k: int = 10, where: Sequence[Condition] = ()
    ) -> list[StoreHits]:
        """Find the rows most like each query.

        Args:
            queries: Of unit length, from the store's own model.
            k: Hits for each.
            where: What a row has to meet, all of it.

        Returns:
            The hits of each query; fewer where fewer rows meet the conditions.

        Raises:
            ShapeError: The queries have another dimension, or ``k`` is below 1.
            ConfigurationError: No row meets the conditions.
            DamagedFileError: A shard cannot be read.
        """
        allowed = self._allowed(where) if where else None
        if allowed is not None and not allowed.any():
            asked = " and ".join(f"{each.column}{each.relation}{each.value}" for each in where)
            raise ConfigurationError(f"No row of {self.store.folder} meets {asked}")
        found = self.index.search(queries, k, allowed)
        rows = self.rows(np.unique(found.rows))
        return [
            StoreHits(_hits(rows, numbers, scores), int(looked_at))
            for numbers, scores, looked_at in zip(found.rows, found.scores, found.reranked, strict=True)
        ]

    def _allowed(self, where: Sequence[Condition]) -> Bool[np.ndarray, " indexed"]:
        shards = [np.logical_and.reduce([each.allowed(path) for each in where]) for path in self.store.paths]
        return np.concatenate(shards)[self._rows]

    def rows(self, wanted: Int64[np.ndarray, " some"]) -> dict[int, StoredRow]:
        """What is known of rows of the index; only the shards that they are in are read.

        Args:
            wanted: Rows of the index.

        Returns:
            The row of the store for each.

        Raises:
            DamagedFileError: A shard cannot be read.
        """
        numbers = self._rows[wanted]
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        found: dict[int, StoredRow] = {}
        for shard in np.unique(shards):
            rows = read_rows(self.store.paths[shard])
            for index, number in zip(wanted[shards == shard], numbers[shards == shard], strict=True):
                found[int(index)] = rows[int(number - self._starts[shard])]
        return found

    def near_duplicates(self, threshold: float) -> Iterator[tuple[StoredRow, StoredRow, float]]:
        """All pairs of rows that are nearly the same.

        Args:
            threshold: The least cosine.

        Yields:
            Two rows and their cosine, in the order of the rows.

        Raises:
            ConfigurationError: The index is not exact.
            DamagedFileError: A shard cannot be read.
        """
        if not isinstance(self.index, ExactIndex):
            raise ConfigurationError("Near duplicates are found by the exact index alone")
        for pairs, scores in near_duplicates(self.index, threshold):
            if len(pairs):
                rows = self.rows(np.unique(pairs))
                for (first, second), score in zip(pairs, scores, strict=True):
                    yield rows[int(first)], rows[int(second)], float(score)

    def most_unlike(self, reference: SearchableStore, k: int) -> list[StoreHit]:
        """The rows that are least like another store, such as that of the training images.

        Args:
            reference: The other store.
            k: How many.

        Returns:
            Rows of this store, the most unlike first, each with its cosine to the tenth nearest row of the other.

        Raises:
            ConfigurationError: The other store is of another model.
            DamagedFileError: A shard cannot be read.
        """
        reference.store.require(self.store.space.fingerprint, self.store.space.model)
        embeddings = np.concatenate(list(self.store.embeddings()))[self._rows]
        order, scores = most_unlike(reference.index, embeddings, k, k=min(10, len(reference)))
        return _hits(self.rows(order), order, scores)


def _texts_of(store: EmbeddingStore) -> list[str]:
    """Some texts that say what images show: of every label and caption a few, at most ``_QUERIES``."""
    found: dict[str, None] = {}
    for row in store.rows():
        found.update(dict.fromkeys(text for text in (row.caption, row.label) if text))
    texts = list(found)
    return texts[:: -(-len(texts) // _QUERIES)] if texts else []


def _hits(rows: dict[int, StoredRow], numbers: np.ndarray, scores: np.ndarray) -> list[StoreHit]:
    return [StoreHit(rows[int(at)], float(score), int(at)) for at, score in zip(numbers, scores, strict=True)]


def build_index(store: EmbeddingStore) -> None:
    """Make the exact index of a store's present state.

    Args:
        store: The embeddings.

    Raises:
        ConfigurationError: No row has an embedding.
        DamagedFileError: A shard cannot be read.
        OSError: The index cannot be written.
    """
    bad = [np.asarray(read_columns(path, [ERROR]).column(ERROR).is_valid()) for path in store.paths]
    rows = np.flatnonzero(~np.concatenate(bad)) if bad else np.empty(0, np.int64)
    if not len(rows):
        raise ConfigurationError(f"{store.folder} holds no image that could be read: there is nothing to search")

    def chunks() -> Iterator[np.ndarray]:
        for path, unreadable in zip(store.paths, bad, strict=True):
            if not unreadable.all():
                yield read_embeddings(path)[~unreadable]

    with replaced_directory(store.folder / INDEX) as temporary:
        ExactIndex.build(chunks(), temporary / EXACT)
        np.save(temporary / _ROWS, rows)
        write_json(temporary / _STATE, {"generation": store.generation.number})


def _state_of(place: Path) -> int | None:
    """The state of the store that an index is of; None where there is no index."""
    try:
        return int(json.loads((place / _STATE).read_text(encoding="utf-8"))["generation"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
