"""The schema of what ``evaluate --json`` and ``evaluate --output`` give, at the model's own resolution."""

from __future__ import annotations

from pydantic import JsonValue

from domainclip.reports.schema.base import Content, MetricValues, SchemaVersion
from domainclip.reports.schema.skipped import SkippedCount, SkippedRow


class EvaluationFile(Content):
    """The content of the file.

    Args:
        metrics: Figures by name.
        details: What they were computed from, down to single images.
        notes: What there is to know of the data: how they were cut, what two splits share, what was not evaluated.
        skipped: Rows that could not be used.
        skipped_counts: How many they are, by reason.
        error_analysis: The page with single images, where one was made.
    """

    schema_version: SchemaVersion = "1.0"
    model: str
    data: str
    split: str
    metrics: MetricValues
    details: dict[str, JsonValue]
    notes: list[str]
    skipped: list[SkippedRow]
    skipped_counts: list[SkippedCount]
    error_analysis: str | None = None
