"""``metrics.jsonl``: one JSON object a line, appended as training goes, cut back when a run is resumed."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from domainclip.events import Event, Milestone, RunStarted, StepLogged, Validated
from domainclip.files import write_text

log = logging.getLogger(__name__)

Row = dict[str, Any]


def read_metrics(path: Path) -> list[Row]:
    """Read the rows of a ``metrics.jsonl``.

    Args:
        path: The file; it need not exist.

    Returns:
        All whole lines, in order. A line that a crash has cut short or that is no row is left out, with what follows
        it.
    """
    return _rows_of(path.read_bytes()) if path.is_file() else []


def _rows_of(content: bytes) -> list[Row]:
    rows: list[Row] = []
    for line in content.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows


class MetricsFile:
    """A listener that writes logged steps, validations and the figures of milestones to ``path``, and a part of a
    checkpoint, so that a run that goes on needs no file from before.

    Each row has ``step``. A row takes the place of an earlier one with the same step and keys: a start that was killed
    before its first checkpoint is made again, and so is what follows the last step. A disk that is full or gone is a
    warning, and the file is tried again at the next row.

    Args:
        path: The file.
        warn: Called once with a sentence, where the file cannot be written.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] = log.warning) -> None:
        self.path, self.warn = path, warn
        self._failed = False
        self._last_step = 0
        self._known: set[tuple[int, frozenset[str]]] = set()
        self._restored: list[Row] | None = None
        self._missed: list[Row] = []  # which could not be written so far

    def state_dict(self) -> list[Row]:
        """What a checkpoint keeps of it.

        Returns:
            All rows so far.
        """
        try:
            return [*read_metrics(self.path), *self._missed]
        except OSError:
            return list(self._missed)

    def load_state_dict(self, rows: list[Row] | None) -> None:
        """Write the file as it was at a checkpoint, whatever has become of it since.

        Args:
            rows: From ``state_dict``; None: from a training that had no such file.
        """
        if rows is not None:
            self._restored = rows

    def __call__(self, event: Event) -> None:
        """Write what the event has for this file, if anything.

        Args:
            event: Any event.
        """
        try:
            if isinstance(event, RunStarted):
                self._cut_back(event.step)
            elif (row := row_of(event)) is not None:
                self._write(row)
        except OSError as error:
            if not self._failed:
                self._failed = True
                self.warn(f"Metrics cannot be written to {self.path}: {error}. The run goes on")

    def _cut_back(self, step: int) -> None:
        found = self._restored if self._restored is not None else read_metrics(self.path)
        rows = [row for row in found if row["step"] <= step]
        self._known, self._last_step, self._restored = set(), 0, None
        self._remember(rows)
        self._write_all(rows)

    def _remember(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._known.add((row["step"], frozenset(row)))
            self._last_step = max(self._last_step, row["step"])

    def _write(self, row: Row) -> None:
        step, keys = row["step"], frozenset(row)
        if not self._known:  # a row before or after a training that this listener has not seen
            self._remember(read_metrics(self.path))
        again = (step, keys) in self._known or step < self._last_step
        self._remember([row])
        try:
            if again or self._missed:  # half a line may stand at the end: what could not be written is written whole
                found = [*read_metrics(self.path), *self._missed]
                rows = [other for other in found if other["step"] != step or frozenset(other) != keys]
                self._write_all(sorted([*rows, row], key=lambda each: each["step"]))
                self._missed = []
            else:
                with open(self.path, "a", encoding="utf-8") as handle:
                    handle.write(json.dumps(row) + "\n")
        except OSError:
            self._missed.append(row)
            raise

    def _write_all(self, rows: Iterable[Row]) -> None:
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))


def row_of(event: Event) -> Row | None:
    """The row of ``metrics.jsonl`` that an event makes.

    Args:
        event: Any event.

    Returns:
        ``step`` and figures by name, None in place of a number that is not finite; None for an event without figures.
    """
    if isinstance(event, StepLogged):
        row = {
            "step": event.step,
            "epoch": round(event.epoch, 4),
            "batch_size": event.batch_size,
            "resolution": event.resolution,
            **event.metrics,
            "learning_rate": event.learning_rates[0],
            "grad_norm": event.gradient_norm,
            "logit_scale": event.logit_scale,
            "embedding_spread": event.embedding_spread,
            "samples_per_second": event.samples_per_second,
            "memory_mb": event.memory_mb,
            "peak_memory_mb": event.peak_memory_mb,
        }
    elif isinstance(event, Validated):
        row = {"step": event.step, **{f"val_{name}": value for name, value in event.metrics.items()}}
    elif isinstance(event, Milestone) and event.values:
        row = {"step": event.step, **event.values}
    else:
        return None
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
