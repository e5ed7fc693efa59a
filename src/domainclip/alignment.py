"""Ranking and retrieval over anything that encodes images and texts."""

from domainclip.metrics.modality_gap import modality_gap
from domainclip.metrics.retrieval import AlignmentMetrics, retrieval_ranks
from domainclip.metrics.separation import Separation, chance_recall, separation
from domainclip.reports.plots.visualizer import AlignmentVisualizer
from domainclip.retrieval import (
    Encoder,
    ImageTextRetrieval,
    MutualPair,
    RetrievalHit,
    SimilarityComputer,
    hard_negatives,
)

__all__ = [
    "AlignmentMetrics",
    "AlignmentVisualizer",
    "Encoder",
    "ImageTextRetrieval",
    "MutualPair",
    "RetrievalHit",
    "Separation",
    "SimilarityComputer",
    "chance_recall",
    "hard_negatives",
    "modality_gap",
    "retrieval_ranks",
    "separation",
]
