"""A graph of neighbours or inverted lists by faiss: for more rows than can be scanned."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Float32, Int64

from domainclip.errors import MissingExtraError
from domainclip.retrieval.index.approximate import ApproximateIndex, Engine, centred_chunks

_GRAPH_AT_MOST = 10_000_000
"""Rows. A graph of more takes too long to make."""
_LINKS, _BREADTH = 32, 256
_TRAINED_PER_LIST = 64
_PROBED = 64


class FaissEngine(Engine):
    """HNSW (Malkov and Yashunin 2018, arXiv 1603.09320), or inverted lists above ten million rows; both of 8-bit rows.

    Args:
        index: faiss' own.
    """

    name: ClassVar[str] = "faiss"

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def write(cls, vectors: Float[np.ndarray, "rows dim"], mean: Float[np.ndarray, " dim"], path: Path) -> None:
        """Make the engine's file.

        Args:
            vectors: All rows.
            mean: Of the rows.
            path: The file.

        Raises:
            MissingExtraError: faiss is not installed.
        """
        faiss, (rows, dim) = _faiss(), vectors.shape
        lists = int(4 * rows**0.5)
        kind = f"HNSW{_LINKS}_SQ8" if rows <= _GRAPH_AT_MOST else f"IVF{lists},SQ8"
        index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
        sample = vectors[:: -(-rows // (_TRAINED_PER_LIST * lists))]
        index.train(np.ascontiguousarray(sample - mean, np.float32))
        for chunk in centred_chunks(vectors, mean):
            index.add(chunk)
        faiss.write_index(index, str(path))

    @classmethod
    def load(cls, path: Path) -> FaissEngine:
        """Read the engine's file.

        Args:
            path: Of ``write``.

        Returns:
            The engine.

        Raises:
            MissingExtraError: faiss is not installed.
        """
        faiss = _faiss()
        index = faiss.read_index(str(path))
        if isinstance(index, faiss.IndexIVF):
            index.nprobe = _PROBED
        return cls(index)

    def propose(self, queries: Float32[np.ndarray, "queries dim"], count: int) -> Int64[np.ndarray, "queries count"]:
        """Rows that may be near.

        Args:
            queries: One a row.
            count: How many for each.

        Returns:
            Their numbers; -1 where fewer are found.
        """
        if hasattr(self._index, "hnsw"):
            self._index.hnsw.efSearch = max(_BREADTH, count)
        return np.asarray(self._index.search(queries, count)[1], np.int64)


class FaissIndex(ApproximateIndex):
    """Approximate search by faiss."""

    engine_type: ClassVar[type[Engine]] = FaissEngine


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss-cpu", "faiss", "A graph of neighbours") from None
    return faiss
