"""The inference engine."""

from domainclip.embedding.engine import EmbeddingEngine

__all__ = ["EmbeddingEngine"]
