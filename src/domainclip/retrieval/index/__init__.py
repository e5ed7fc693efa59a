"""Searching vectors on a disk: exactly, or approximately with a recall that was measured."""

from domainclip.retrieval.index.exact import ExactIndex
from domainclip.retrieval.index.protocol import SearchResult, VectorIndex

__all__ = ["ExactIndex", "SearchResult", "VectorIndex"]
