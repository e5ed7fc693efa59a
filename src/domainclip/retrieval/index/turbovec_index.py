"""A scan of 4-bit codes by turbovec: for a million rows and more where a few milliseconds matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Float32, Int64

from domainclip.errors import MissingExtraError
from domainclip.retrieval.index.approximate import ApproximateIndex, Engine, centred_chunks

_BITS = 4
_MULTIPLE = 8


class TurbovecEngine(Engine):
    """Quantises a random rotation of each row (Zandieh et al. 2025, "TurboQuant", arXiv 2504.19874).

    Args:
        index: turbovec's own.
    """

    name: ClassVar[str] = "turbovec"

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
            MissingExtraError: turbovec is not installed.
        """
        index = _turbovec().TurboQuantIndex(dim=-(-vectors.shape[1] // _MULTIPLE) * _MULTIPLE, bit_width=_BITS)
        for chunk in centred_chunks(vectors, mean):
            index.add(_padded(chunk))
        index.write(str(path))

    @classmethod
    def load(cls, path: Path) -> TurbovecEngine:
        """Read the engine's file.

        Args:
            path: Of ``write``.

        Returns:
            The engine.

        Raises:
            MissingExtraError: turbovec is not installed.
        """
        return cls(_turbovec().TurboQuantIndex.load(str(path)))

    def propose(self, queries: Float32[np.ndarray, "queries dim"], count: int) -> Int64[np.ndarray, "queries count"]:
        """Rows that may be near.

        Args:
            queries: One a row.
            count: How many for each.

        Returns:
            Their numbers.
        """
        return np.asarray(self._index.search(_padded(queries), k=count)[1], np.int64)


class TurbovecIndex(ApproximateIndex):
    """Approximate search by turbovec."""

    engine_type: ClassVar[type[Engine]] = TurbovecEngine


def _turbovec() -> Any:
    try:
        import turbovec
    except ImportError:
        raise MissingExtraError("turbovec", "search", "A 4-bit index") from None
    return turbovec


def _padded(vectors: Float32[np.ndarray, "rows dim"]) -> Float32[np.ndarray, "rows padded"]:
    """With zeros, which change no product."""
    return np.ascontiguousarray(np.pad(vectors, ((0, 0), (0, -vectors.shape[1] % _MULTIPLE))))
