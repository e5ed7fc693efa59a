"""Finding the texts that fit an image, the images that fit a text, and the rows that are hardest to tell apart."""

from domainclip.retrieval.mining import hard_negatives
from domainclip.retrieval.retrieval import (
    Encoder,
    FileEncoder,
    ImageHit,
    ImageTextRetrieval,
    MutualPair,
    RetrievalHit,
    TextHit,
)
from domainclip.retrieval.similarity_computer import SimilarityComputer, check_top_k, stable_top_k

__all__ = [
    "Encoder",
    "FileEncoder",
    "ImageHit",
    "ImageTextRetrieval",
    "MutualPair",
    "RetrievalHit",
    "SimilarityComputer",
    "TextHit",
    "check_top_k",
    "hard_negatives",
    "stable_top_k",
]
