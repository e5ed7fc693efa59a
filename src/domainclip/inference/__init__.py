"""Using a model: embeddings of images and texts, similarities, classes."""

from domainclip.inference.engine import EmbeddingEngine
from domainclip.inference.session import ModelSession

__all__ = ["EmbeddingEngine", "ModelSession"]
