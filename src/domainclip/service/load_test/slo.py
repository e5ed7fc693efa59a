"""Objectives of latency, such as "p95=100ms", and the percentiles that they are about."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from domainclip.errors import ConfigurationError

_SLO = re.compile(r"p(?P<percent>\d{1,2}(\.\d+)?)=(?P<time>\d+(\.\d+)?)(?P<unit>ms|s)")


@dataclass(frozen=True)
class Slo:
    """At least ``percent`` of all requests are answered well within ``seconds``.

    A request that is refused, fails, or is not answered in time counts as one that takes forever, so that a service
    cannot meet its objective by refusing.
    """

    percent: float
    seconds: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an objective.

        Args:
            text: Such as "p95=100ms" or "p99.9=1.5s".

        Returns:
            The objective.

        Raises:
            ConfigurationError: It is written otherwise, or nothing could meet it.
        """
        found = _SLO.fullmatch(text.strip())
        if found is None or not float(found["percent"]) or not float(found["time"]):
            raise ConfigurationError(f"Invalid objective {text!r}: give a percentile and a time, such as p95=100ms")
        return cls(float(found["percent"]), float(found["time"]) / (1000 if found["unit"] == "ms" else 1))

    def __str__(self) -> str:
        return f"p{self.percent:g}={self.seconds * 1000:g}ms"

    def is_met(self, latencies: Sequence[float]) -> bool:
        """Decide.

        Args:
            latencies: In seconds, ascending; infinite where there was no good answer.

        Returns:
            Whether the percentile is within the time; False where there was no request.
        """
        return bool(latencies) and percentile(latencies, self.percent) <= self.seconds

    def late_allowed(self, requests: int) -> int:
        """Count how many requests may be late.

        Args:
            requests: All of them.

        Returns:
            With more late ones the objective is certainly missed.
        """
        return requests - math.floor(self.percent / 100 * (requests - 1)) - 1 if requests else 0


def percentile(ascending: Sequence[float], percent: float) -> float:
    """A percentile, between two values linearly (numpy's default), where values may be infinite.

    Args:
        ascending: At least one value, in order.
        percent: From 0 to 100.

    Returns:
        The value; infinite where an infinite one has any part in it.

    Raises:
        ValueError: There is no value.
    """
    if not ascending:
        raise ValueError("a percentile needs at least one value")
    place = percent / 100 * (len(ascending) - 1)
    below = math.floor(place)
    part = place - below
    if part == 0:
        return ascending[below]
    low, high = ascending[below], ascending[below + 1]
    return high if math.isinf(high) else low + part * (high - low)
