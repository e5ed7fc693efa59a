"""Using a model: embeddings of images and texts."""

from domainclip.inference.engine import EmbeddingEngine

__all__ = [
    "EmbeddingEngine",
]
