"""Approximate search that knows its recall: an engine proposes rows, their vectors rank them, and an exact index beside
it says how often the engine is right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from domainclip.errors import DamagedFileError, IndexNotReadyError, MissingFileError
from domainclip.files import damage_of, read_record, replaced_directory, sha256_of, write_record
from domainclip.retrieval.index.exact import ExactIndex
from domainclip.retrieval.index.protocol import SearchResult, checked_k, checked_queries
from domainclip.retrieval.index.ranking import Hits, result_of
from domainclip.retrieval.index.vectors import pieces

LEAST_RECALL = 0.98
_RECORD, _EXACT, _ENGINE = "approximate.json", "exact", "engine.bin"
_RECALL_AT = 10
_SAMPLED = 256
"""Rows that are searched for where no images are given: the standard error of a recall of .98 is at most .009 then."""
_PROPOSED, _PROPOSED_PER_HIT = 200, 20
_ADDED_AT_ONCE = 65_536


class Engine(ABC):
    """Proposes rows that may be near to a query."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def write(cls, vectors: Float[np.ndarray, "rows dim"], mean: Float[np.ndarray, " dim"], path: Path) -> None:
        """Make the engine's file.

        Args:
            vectors: All rows.
            mean: Of the rows.
            path: The file.

        Raises:
            MissingExtraError: Its package is not installed.
        """

    @classmethod
    @abstractmethod
    def load(cls, path: Path) -> Self:
        """Read the engine's file.

        Args:
            path: Of ``write``.

        Returns:
            The engine.

        Raises:
            MissingExtraError: Its package is not installed.
        """

    @abstractmethod
    def propose(self, queries: Float32[np.ndarray, "queries dim"], count: int) -> Int64[np.ndarray, "queries count"]:
        """Rows that may be near.

        Args:
            queries: One a row.
            count: How many for each, at most as many as there are rows.

        Returns:
            Their numbers, in any order; negative ones where fewer are found.
        """


class ApproximateIndex(ABC):
    """An engine and an exact index of the same rows; ``open`` or ``build`` one. Filtered searches are exact: filters
    ruin what engines find.

    Args:
        exact: The exact index.
        engine: What proposes rows.
        recalls: Of the ten nearest rows, what fraction it finds, for "image" and "text" queries; None where no such
            queries were given.
    """

    engine_type: ClassVar[type[Engine]]

    def __init__(self, exact: ExactIndex, engine: Engine, recalls: dict[str, float | None]) -> None:
        self.exact, self.recalls, self._engine = exact, recalls, engine

    @classmethod
    def build(
        cls,
        chunks: Iterable[Float[np.ndarray, "chunk dim"]],
        folder: Path,
        *,
        image_queries: Float[np.ndarray, "images dim"] | None = None,
        text_queries: Float[np.ndarray, "texts dim"] | None = None,
        least_recall: float = LEAST_RECALL,
    ) -> Self:
        """Write an index, whole or not at all, and measure its recall.

        Text queries lie elsewhere than images (the modality gap), and an engine that finds images by images may not
        find them by texts: give some of the texts that users search for.

        Args:
            chunks: The rows in their order, some at a time; the first chunk's type (float16 or float32) is the
                stored one.
            folder: Where it is written. An earlier index is replaced.
            image_queries: Images that the recall is measured with; 256 of the rows, if left out, which do not count as
                found themselves.
            text_queries: Texts that the recall is measured with. Without them the recall for texts is unknown.
            least_recall: Below it the index is not ready.

        Returns:
            The index, opened.

        Raises:
            DataError: There are no rows, or one has NaN or infinity.
            ShapeError: A chunk or the queries do not fit.
            MissingExtraError: The engine's package is not installed.
            IndexNotReadyError: Its recall is lower. It is written, and can be opened with a lower ``least_recall``.
            OSError: It cannot be written.
        """
        with replaced_directory(Path(folder)) as temporary:
            exact = ExactIndex.build(chunks, temporary / _EXACT)
            path = temporary / _ENGINE
            cls.engine_type.write(exact.vectors, exact.mean, path)
            index, own = cls(exact, cls.engine_type.load(path), {}), None
            if image_queries is None:
                own = np.unique(np.linspace(0, len(exact) - 1, _SAMPLED).astype(np.int64))
                image_queries = exact.vectors[own]
            recalls = {
                "image": index.recall(image_queries, own),
                "text": None if text_queries is None else index.recall(text_queries),
            }
            engine = {"name": cls.engine_type.name, "sha256": sha256_of(path)}
            write_record(temporary / _RECORD, {"engine": engine, "recall_at": _RECALL_AT, "recalls": recalls})
            del index, exact
        return cls.open(folder, least_recall)

    @classmethod
    def open(cls, folder: Path, least_recall: float = LEAST_RECALL) -> Self:
        """Open an index.

        Args:
            folder: Where it was built.
            least_recall: What each recall that was measured must be at least.

        Returns:
            The index.

        Raises:
            MissingFileError: There is no such index.
            DamagedFileError: A file is not as it was written.
            MissingExtraError: The engine's package is not installed.
            IndexNotReadyError: A recall is lower.
        """
        folder = Path(folder)
        if not (folder / _RECORD).is_file():
            raise MissingFileError(f"There is no approximate index in {folder}: {_RECORD} is missing. Build it first")
        record = read_record(folder / _RECORD)
        if record["engine"]["name"] != cls.engine_type.name:
            raise MissingFileError(
                f"The index in {folder} is one of {record['engine']['name']}, not of {cls.engine_type.name}"
            )
        for kind, recall in record["recalls"].items():
            if recall is not None and recall < least_recall:
                raise IndexNotReadyError(
                    f"The index in {folder} is not ready: of the {record['recall_at']} nearest rows of {kind} queries "
                    f"it finds {recall:.1%}, less than the {least_recall:.1%} asked for. Search exactly, or ask for "
                    "less with least_recall"
                )
        if damage := damage_of(folder, {_ENGINE: record["engine"]["sha256"]}):
            raise DamagedFileError(f"{damage}. Build the index anew")
        return cls(ExactIndex.open(folder / _EXACT), cls.engine_type.load(folder / _ENGINE), record["recalls"])

    def search(
        self,
        queries: Float[np.ndarray, "queries dim"],
        k: int = 10,
        allowed: Bool[np.ndarray, " rows"] | None = None,
    ) -> SearchResult:
        """Find rows that are nearly always the nearest ones; with ``allowed`` they always are.

        Args:
            queries: One a row.
            k: Hits for each, at least 1.
            allowed: Which rows may be found; all, if left out.

        Returns:
            The hits.

        Raises:
            ShapeError: ``queries``, ``k`` or ``allowed`` does not fit the index.
        """
        if allowed is not None:
            return self.exact.search(queries, k, allowed)
        queries = checked_queries(queries, self.exact.dim)
        k = min(checked_k(k), len(self.exact))
        proposed = self._engine.propose(queries, min(len(self.exact), max(_PROPOSED, _PROPOSED_PER_HIT * k)))
        hits = [Hits(self.exact.vectors, query, k) for query in queries]
        for each, rows in zip(hits, proposed, strict=True):
            found = np.unique(rows[rows >= 0])
            if len(found) < k:  # a graph need not lead everywhere
                return self.exact.search(queries, k)
            each.consider(found, np.full(len(found), np.inf))
        return result_of(hits, k)

    def recall(
        self, queries: Float[np.ndarray, "queries dim"], own: Int64[np.ndarray, " queries"] | None = None
    ) -> float:
        """What fraction of the ten nearest rows is found. Of equal scores it does not matter which row is.

        Args:
            queries: One a row.
            own: The row that each query is itself, which does not count.

        Returns:
            The mean of all queries.

        Raises:
            ShapeError: The queries do not fit the index.
        """
        k = _RECALL_AT + (own is not None)
        found, nearest = self.search(queries, k), self.exact.search(queries, k)
        recalls = []
        for index in range(len(queries)):
            itself = -1 if own is None else own[index]
            wanted = nearest.scores[index][nearest.rows[index] != itself][:_RECALL_AT]
            scores = found.scores[index][found.rows[index] != itself][: len(wanted)]
            recalls.append(float((scores >= wanted[-1]).mean()) if len(wanted) else 1.0)
        return float(np.mean(recalls))


def centred_chunks(
    vectors: Float[np.ndarray, "rows dim"], mean: Float[np.ndarray, " dim"]
) -> Iterator[Float32[np.ndarray, "chunk dim"]]:
    """Rows for an engine. Without their mean each score is less by the same amount, so the order is as it was, and what
    an engine rounds is only what rows differ in: much less, as embeddings lie in a cone.

    Args:
        vectors: All rows.
        mean: Of the rows.

    Yields:
        Rows in float32, some at a time.
    """
    for piece in pieces(len(vectors), _ADDED_AT_ONCE):
        yield np.ascontiguousarray(vectors[piece] - mean, np.float32)
