"""A tracker that is a list, an exporter to it, and run folders to export from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domainclip.tracking.exporters import Exporter, Figures, Result, RunFacts


@dataclass
class Tracker:
    """What a tracker holds, and how it misbehaves.

    Attributes:
        figures: Step, name and value, in the order in which they came.
        fault: Called with the name of a method and how many figures it has taken; raises or sleeps.
        is_late: It keeps figures only from the next call on: a kill loses the last ones.
    """

    figures: list[tuple[int, str, float]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    runs: list[RunFacts] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    fault: Callable[[str, int], object] = lambda method, taken: None
    is_late: bool = False

    def exporter(self) -> FakeExporter:
        return FakeExporter(self)

    def __call__(self) -> FakeExporter:
        return self.exporter()


class FakeExporter(Exporter):
    """Sends to a ``Tracker`` that outlives it."""

    destination = "list"

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.keeps_at_once = not tracker.is_late
        self._late: list[tuple[int, str, float]] = []

    def start(self, run: RunFacts) -> None:
        self._keep()
        self.tracker.fault("start", 0)
        self.tracker.runs.append(run)

    def held(self, rows: Sequence[Figures]) -> set[tuple[int, str]]:
        return {(step, name) for step, name, _ in self.tracker.figures}

    def log(self, rows: Sequence[Figures]) -> None:
        self._keep()
        target = self._late if self.tracker.is_late else self.tracker.figures
        taken = 0
        for row in rows:
            for name, value in row.values.items():
                self.tracker.fault("log", taken)
                target.append((row.step, name, value))
                taken += 1
            self.tracker.texts |= row.texts
        self.tracker.fault("log", taken)

    def finish(self, result: Result) -> None:
        self._keep()
        self.tracker.fault("finish", 0)
        self.tracker.results.append(result)

    def _keep(self) -> None:
        self.tracker.figures += self._late
        self._late = []


def write_rows(folder: Path, rows: Sequence[dict[str, Any]], name: str = "metrics.jsonl") -> None:
    """Replace a file of rows, as a resumption does."""
    folder.mkdir(exist_ok=True)
    temporary = folder / f"{name}.new"
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    temporary.replace(folder / name)


def append_rows(folder: Path, rows: Sequence[dict[str, Any]], name: str = "metrics.jsonl") -> None:
    """Add rows to a file of rows, as a training does."""
    with open(folder / name, "a") as handle:
        handle.write("".join(json.dumps(row) + "\n" for row in rows))


def expected_figures(folder: Path) -> set[tuple[int, str, float]]:
    """Step, name and value of every figure in ``metrics.jsonl``, read plainly."""
    found = set()
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name != "step" and value is not None:
                found.add((row["step"], name, float(value)))
    return found


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)
