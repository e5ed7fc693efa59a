"""Finding the texts that fit an image, the images that fit a text, and the rows that are hardest to tell apart."""

from domainclip.retrieval.mining import hard_negatives
from domainclip.retrieval.retrieval import (
    BatchRetrieval,
    Encoder,
    FileEncoder,
    ImageTextRetrieval,
    MutualPair,
    RetrievalHit,
)
from domainclip.retrieval.similarity_computer import SimilarityComputer, check_top_k, stable_top_k

__all__ = [
    "BatchRetrieval",
    "Encoder",
    "FileEncoder",
    "ImageTextRetrieval",
    "MutualPair",
    "RetrievalHit",
    "SimilarityComputer",
    "check_top_k",
    "hard_negatives",
    "stable_top_k",
]
