"""Where the time of training steps goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StepTimes:
    """Seconds by what they went into, since they were last read.

    Args:
        on_cpu: Whether what is called has been computed when the call returns. An accelerator works on by itself, so
            that there only whole steps can be timed without waiting for it.
    """

    def __init__(self, on_cpu: bool) -> None:
        self.on_cpu = on_cpu
        self._seconds: dict[str, float] = {}
        self._steps = 0

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the time of a part of a step, where that can be told.

        Args:
            name: Of the part.

        Yields:
            Nothing.
        """
        began = time.monotonic()
        try:
            yield
        finally:
            if self.on_cpu:
                self._add(name, time.monotonic() - began)

    def finish_step(self, waited: float, seconds: float) -> None:
        """Count a step.

        Args:
            waited: Seconds until its batch was there.
            seconds: That it took from then on.
        """
        self._steps += 1
        self._add("data", waited)
        self._add("step", seconds)

    def take(self) -> dict[str, float]:
        """Read the times, and begin anew.

        Returns:
            Mean seconds a step: ``data``, and ``step`` or its parts (``towers`` is what no other part has taken).
        """
        means = {name: seconds / max(1, self._steps) for name, seconds in self._seconds.items()}
        self._seconds, self._steps = {}, 0
        if self.on_cpu and "step" in means:
            data, step = means.pop("data"), means.pop("step")
            means = {"data": data, "towers": max(0.0, step - sum(means.values())), **means}
        return means

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
