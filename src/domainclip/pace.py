"""How long the rest will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

RECENT = 60
"""Observations that the pace is taken from: old ones count no more, since steps become slower as images grow."""


class Pace:
    """Seconds that are left of some work, by how fast it went lately.

    Args:
        total: Its length.
        done: How much of it is behind already.
        clock: Gives seconds.
    """

    def __init__(self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.clock = total, clock
        self.began = clock()
        self._at: deque[tuple[float, int]] = deque([(self.began, done)], maxlen=RECENT)

    def observe(self, done: int) -> None:
        """Note how far it is.

        Args:
            done: How much of it is behind.
        """
        self._at.append((self.clock(), done))

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
        rest, waited = (self.total - last) / (last - first), self.clock() - now
        if waited > 2 * (now - before) / (len(self._at) - 1):  # it has become slower, or stands
            return rest * (now + waited - before)
        return max(0.0, rest * (now - before) - waited)


def duration(seconds: float) -> str:
    """A time as a person reads it.

    Args:
        seconds: Its length, 0 or more.

    Returns:
        "42 s", "12 min", "3.5 h".
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
