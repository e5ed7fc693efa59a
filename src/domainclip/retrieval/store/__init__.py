"""Embeddings on disk: Parquet shards, what they are of, and how several workers make them together."""

from domainclip.retrieval.store.store import EmbeddingStore, Space

__all__ = ["EmbeddingStore", "Space"]
