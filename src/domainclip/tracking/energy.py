"""The energy that a training takes, and whether the machine throttles meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from domainclip.devices.power import PowerSource, Unreadable
from domainclip.events import Event, Noted, RunFinished, RunStarted, StepLogged
from domainclip.tracking.jsonl import read_rows

EVERY_SECONDS = 5.0


class EnergyMeter:
    """Adds up what sources say, in a thread of its own. One that fails is left out from then on.

    Args:
        sources: What can be read.
        reasons: Why other sources say nothing; those that fail are added.
    """

    def __init__(self, sources: Sequence[PowerSource], reasons: list[str]) -> None:
        self.sources, self.reasons = list(sources), reasons
        self.covers = " and ".join(source.covers for source in sources if source.covers)
        self._joules, self._throttled = 0.0, False
        self._lock = threading.Lock()

    def sample(self) -> None:
        """Read all sources once."""
        for source in list(self.sources):
            try:
                reading = source.read()
            except Unreadable as error:
                self.sources.remove(source)
                self.reasons.append(f"{source.name} was read until {error}")
                continue
            with self._lock:
                self._joules += reading.joules or 0.0
                self._throttled |= bool(reading.throttled)

    def take(self) -> tuple[float, bool]:
        """Read the sums, and begin anew.

        Returns:
            Joules, and whether the machine throttled, since the last call.
        """
        with self._lock:
            taken = self._joules, self._throttled
            self._joules, self._throttled = 0.0, False
        return taken


class EnergyListener:
    """A listener that puts the energy of the training into ``metrics.jsonl`` and into the report.

    Args:
        meter: Adds it up.
        emit: Takes the figures.
        metrics: The run's file, where a resumed run finds what it has taken before.
    """

    def __init__(self, meter: EnergyMeter, emit: Callable[[Event], None], metrics: Path) -> None:
        self.meter, self.emit, self.metrics = meter, emit, metrics
        self.joules = 0.0
        self.record: dict[str, Any] | None = None
        """Figures of the report, once the training is over; None where nothing can be read."""

    def __call__(self, event: Event) -> None:
        """Take an event of the training.

        Args:
            event: Any event.
        """
        if isinstance(event, RunStarted):
            self.meter.take()
            before = [row["energy_j"] for row in read_rows(self.metrics) if row.get("energy_j") is not None]
            self.joules = float(before[-1]) if before and event.step else 0.0
        elif isinstance(event, StepLogged):
            joules, throttled = self.meter.take()
            self.joules += joules
            values: dict[str, float | int | bool | None] = {"throttled": int(throttled)}
            if self.meter.covers:
                values["energy_j"] = self.joules
            self.emit(Noted(name="energy", step=event.step, values=values))
        elif isinstance(event, RunFinished):
            self.joules += self.meter.take()[0]
            if self.meter.covers and event.rows_seen:
                self.record = {
                    "joules": self.joules,
                    "joules_per_sample": self.joules / event.rows_seen,
                    "energy_covers": self.meter.covers,
                }


@contextmanager
def energy_of(
    sources: Sequence[PowerSource],
    reasons: list[str],
    emit: Callable[[Event], None],
    metrics: Path,
    every: float = EVERY_SECONDS,
) -> Iterator[EnergyListener]:
    """Measure for as long as the block runs.

    Args:
        sources: What can be read; without any there is nothing to listen for.
        reasons: Why others say nothing.
        emit: Takes the figures.
        metrics: The run's ``metrics.jsonl``.
        every: Seconds between two readings.

    Yields:
        The listener.
    """
    meter = EnergyMeter(sources, reasons)
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(every):
            meter.sample()

    thread = threading.Thread(target=work, name="energy", daemon=True)
    if sources:
        thread.start()
    try:
        yield EnergyListener(meter, emit, metrics)
    finally:
        ended.set()  # a program that hangs is not waited for
