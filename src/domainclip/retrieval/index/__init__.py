"""Searching vectors on a disk: exactly, or approximately with a recall that was measured. Works without torch."""

from domainclip.retrieval.index.approximate import ApproximateIndex
from domainclip.retrieval.index.exact import ExactIndex
from domainclip.retrieval.index.faiss_index import FaissIndex
from domainclip.retrieval.index.neighbours import most_unlike, near_duplicates
from domainclip.retrieval.index.protocol import SearchResult, VectorIndex
from domainclip.retrieval.index.turbovec_index import TurbovecIndex

__all__ = [
    "ApproximateIndex",
    "ExactIndex",
    "FaissIndex",
    "SearchResult",
    "TurbovecIndex",
    "VectorIndex",
    "most_unlike",
    "near_duplicates",
]
