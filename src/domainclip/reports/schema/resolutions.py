"""The schema of what ``evaluate --resolutions`` gives: one model at several resolutions, and on corrupted images."""

from __future__ import annotations

from domainclip.evaluation.robustness import Agreement, Robustness
from domainclip.metrics.significance import PairedChange
from domainclip.reports.schema.base import Content, SchemaVersion
from domainclip.reports.schema.skipped import SkippedCount, SkippedRow


class AtResolution(Content):
    """The model at one resolution. ``agreement`` and ``change`` (of acc1) are against its own, the ``native`` one.

    ``seconds_per_batch`` are those of each timed batch; ``peak_memory_mb`` is in MiB.
    """

    resolution: int
    native: bool
    metrics: dict[str, float]
    images_per_second: float
    seconds_per_batch: list[float] = []
    peak_memory_mb: float
    agreement: Agreement
    change: PairedChange | None


class Measurement(Content):
    """How speed and memory were measured, for whoever reads them on another machine; ``note`` says it in sentences."""

    device: str
    device_name: str
    batch_size: int
    precision: str
    threads: int
    memory: str
    note: str


class ResolutionsReport(Content):
    """The content of the file.

    Args:
        resolutions: The model at each of them, ascending.
        robustness: The model on corrupted images, None where that was not asked for.
        skipped: Rows that could not be used.
        skipped_counts: How many they are, by reason.
    """

    schema_version: SchemaVersion = "1.0"
    model: str
    data: str
    split: str
    n_rows: int
    n_images: int
    primary_metric: str
    native_resolution: int
    notes: list[str]
    measurement: Measurement
    resolutions: list[AtResolution]
    robustness: Robustness | None
    skipped: list[SkippedRow] = []
    skipped_counts: list[SkippedCount] = []
