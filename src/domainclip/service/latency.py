"""How long a batch takes, learned while it runs: fixed + per_row · rows, for each tower and length of text."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import NamedTuple

_FORGETTING = 0.9
"""What a batch counts after the next one of its kind: about the last ten say how fast the machine is now."""


class Bucket(NamedTuple):
    """What can be computed together: images, or texts of one padded length."""

    tower: str
    tokens: int = 0


IMAGE = Bucket("image")


@dataclass
class _Sums:
    """Of a least squares fit of seconds on rows, the latest batches counting most."""

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_squared: float = 0.0
    product: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
        for name, value in (
            ("weight", 1.0),
            ("rows", float(rows)),
            ("seconds", seconds),
            ("rows_squared", float(rows * rows)),
            ("product", rows * seconds),
        ):
            setattr(self, name, getattr(self, name) * _FORGETTING + value)

    def line(self) -> tuple[float, float]:
        """Fixed seconds and seconds a row, neither below zero."""
        mean_rows, mean_seconds = self.rows / self.weight, self.seconds / self.weight
        variance = self.rows_squared / self.weight - mean_rows**2
        if variance < 1e-9 * mean_rows**2:  # batches of one size: nothing tells the two apart
            return 0.0, mean_seconds / mean_rows
        slope = (self.product / self.weight - mean_rows * mean_seconds) / variance
        slope = min(max(slope, 0.0), mean_seconds / mean_rows)
        return mean_seconds - slope * mean_rows, slope


class LatencyModel:
    """Predicts what a batch takes from what earlier ones took. May be used by several threads."""

    def __init__(self) -> None:
        self._sums: dict[Bucket, _Sums] = {}
        self._lock = threading.Lock()

    def observe(self, bucket: Bucket, rows: int, seconds: float) -> None:
        """Learn from a batch.

        Args:
            bucket: What it was of.
            rows: How many, the padding included.
            seconds: What it took.
        """
        with self._lock:
            self._sums.setdefault(bucket, _Sums()).add(rows, seconds)

    def predict(self, bucket: Bucket, rows: float) -> float:
        """What a batch will take.

        Args:
            bucket: What it is of.
            rows: How many.

        Returns:
            Seconds; 0 where nothing like it has been computed yet.
        """
        fixed, slope = self.line(bucket)
        return fixed + slope * rows

    def rows_within(self, bucket: Bucket, seconds: float, most: int) -> int:
        """The largest batch that keeps within a time.

        Args:
            bucket: What it is of.
            seconds: What it may take.
            most: Rows, at the most.

        Returns:
            From 1 to ``most``: one row is always computed, however long it takes.
        """
        fixed, slope = self.line(bucket)
        return most if slope <= 0 else int(max(1, min(most, (seconds - fixed) / slope)))

    def line(self, bucket: Bucket) -> tuple[float, float]:
        """The fit.

        Args:
            bucket: What is computed.

        Returns:
            Fixed seconds, and seconds a row; of a length of text that is not known those of the nearest longer one,
            or else of the longest.
        """
        with self._lock:
            sums = self._sums.get(bucket)
            if sums is None:
                known = sorted(each for each in self._sums if each.tower == bucket.tower)
                if not known:
                    return 0.0, 0.0
                sums = self._sums[next((each for each in known if each.tokens >= bucket.tokens), known[-1])]
            return sums.line()

    def lines(self) -> dict[Bucket, tuple[float, float]]:
        """All fits.

        Returns:
            Fixed seconds and seconds a row of each bucket that has been computed.
        """
        with self._lock:
            return {bucket: sums.line() for bucket, sums in self._sums.items()}
