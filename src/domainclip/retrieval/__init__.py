"""Finding the texts that fit an image, the images that fit a text, and the rows that are hardest to tell apart.

Names are loaded when they are first used: ``domainclip.retrieval.index`` searches without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from domainclip.lazy import lazy_names

if TYPE_CHECKING:
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

_HOME = {
    "hard_negatives": "mining",
    "Encoder": "retrieval",
    "FileEncoder": "retrieval",
    "ImageHit": "retrieval",
    "ImageTextRetrieval": "retrieval",
    "MutualPair": "retrieval",
    "RetrievalHit": "retrieval",
    "TextHit": "retrieval",
    "SimilarityComputer": "similarity_computer",
    "check_top_k": "similarity_computer",
    "stable_top_k": "similarity_computer",
}

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

if not TYPE_CHECKING:  # to a checker, a module with a __getattr__ has every name there is
    __getattr__ = lazy_names(__name__, _HOME)
