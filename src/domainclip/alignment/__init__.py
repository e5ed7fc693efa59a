"""Ranking and retrieval over anything that encodes pictures and texts."""

from domainclip.alignment.metrics import AlignmentMetrics, retrieval_ranks

__all__ = ["AlignmentMetrics", "retrieval_ranks"]
