"""The schema of ``tuning.json``: a search for a recipe, trial by trial."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue

from domainclip.reports.schema.base import Content, SchemaVersion
from domainclip.reports.schema.skipped import SkippedCount, SkippedRow

FINISHED: tuple[str, ...] = ("complete", "pruned", "diverged", "out_of_memory", "gave_up")
"""Outcomes that count towards the number of trials asked for."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the tables show it. ``value``: the primary metric of the kept checkpoint (of the last validation
    where the trial was pruned), None where there is none; ``standard_error`` is that metric's."""

    number: int
    outcome: str
    value: float | None
    standard_error: float | None
    params: dict[str, Any]
    seconds: float
    steps: int
    reason: str
    default: bool
    retry_of: int | None = None
    history: dict[int, float] = field(default_factory=dict)  # training step → primary metric

    @property
    def finished(self) -> bool:
        """Whether it counts towards the number of trials asked for."""
        return self.outcome in FINISHED


class TuningReport(Content):
    """The content of ``tuning.json``.

    Args:
        metric: The short name of what was searched for.
        rows: Of each split.
        steps: Of a trial at most; the whole run has ``full_steps``.
        space: The values searched, by key.
        best: The number of the best complete trial, None without one.
        default: The number of the trial of the default recipe.
        gain: How much better the best is than the default; positive is better.
        standard_error: That of the metric on these validation rows.
        importances: By key.
    """

    schema_version: SchemaVersion = "1.0"
    metric: str
    greater_is_better: bool
    model: str
    data: str
    rows: dict[str, int]
    steps: int
    full_steps: int
    trials_asked_for: int
    trials_finished: int
    space: dict[str, JsonValue]
    best: int | None
    default: int | None
    gain: float | None
    standard_error: float
    importances: dict[str, float]
    skipped: list[SkippedRow]
    skipped_counts: list[SkippedCount]
    trials: list[TrialRecord]
