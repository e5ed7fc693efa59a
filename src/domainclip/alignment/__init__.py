"""Ranking and retrieval over anything that encodes pictures and texts."""

from domainclip.alignment.metrics import AlignmentMetrics, retrieval_ranks
from domainclip.alignment.mining import hard_negatives
from domainclip.alignment.modality_gap import modality_gap
from domainclip.alignment.retrieval import BatchRetrieval, Encoder, ImageTextRetrieval, MutualPair, RetrievalHit
from domainclip.alignment.separation import Separation, chance_recall, separation
from domainclip.alignment.similarity_computer import SimilarityComputer
from domainclip.alignment.visualizer import AlignmentVisualizer

__all__ = [
    "AlignmentMetrics",
    "AlignmentVisualizer",
    "BatchRetrieval",
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
