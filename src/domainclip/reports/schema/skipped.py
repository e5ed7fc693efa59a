"""What could not be used, in every report: each row, and how many there are by reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from domainclip.reports.schema.base import Content

OTHER = "other reason"


class SkippedRow(Content):
    """A row that could not be used. ``kind`` is the reason in one of a few fixed phrases."""

    split: str | None = None
    image_path: str | None = None
    reason: str
    kind: str = OTHER


class SkippedCount(Content):
    """How many rows, with how many different images, were skipped for one kind of reason; ``first`` is an example."""

    split: str | None
    kind: str
    rows: int
    images: int
    first: str


def skipped_counts(rows: Iterable[Mapping[str, str]]) -> list[SkippedCount]:
    """Count what was skipped.

    Args:
        rows: As ``skipped.json`` lists them.

    Returns:
        A count for each kind of reason in each split, the most frequent first.
    """
    groups: dict[tuple[str | None, str], list[SkippedRow]] = {}
    for each in rows:
        row = SkippedRow(**each)
        groups.setdefault((row.split, row.kind), []).append(row)
    found = [
        SkippedCount(
            split=split,
            kind=kind,
            rows=len(these),
            images=len({row.image_path for row in these if row.image_path}),
            first=these[0].reason,
        )
        for (split, kind), these in groups.items()
    ]
    return sorted(found, key=lambda count: -count.rows)
