"""How long the rest will take."""

from __future__ import annotations

import time
from collections import deque

RECENT = 60
"""Observations that the pace is taken from: old ones count no more, since steps become slower as images grow."""


class Pace:
    """Seconds that are left of some work, by how fast it went lately.

    Args:
        total: Its length.
        done: How much of it is behind already.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self.total = total
        self.began = time.monotonic()
        self._at: deque[tuple[float, int]] = deque([(self.began, done)], maxlen=RECENT)

    def observe(self, done: int) -> None:
        """Note how far it is.

        Args:
            done: How much of it is behind.
        """
        self._at.append((time.monotonic(), done))

    @property
    def done(self) -> int:
        """How far it was when it was last observed."""
        return self._at[-1][1]

    def seconds_left(self) -> float | None:
        """Estimate the rest.

        Returns:
            Seconds from now; None while too little is known.
        """
        (before, first), (now, last) = self._at[0], self._at[-1]
        if last <= first or now <= before:
            return None
        waited = time.monotonic() - now
        return max(0.0, (self.total - last) * (now - before) / (last - first) - waited)
