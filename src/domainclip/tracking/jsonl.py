"""``metrics.jsonl`` and the files beside it: one JSON object a line, appended as training goes, cut back when a run is
resumed."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from domainclip.events import Event, InitialValidated, Milestone, Noted, RunStarted, StepLogged, Validated
from domainclip.files import write_json, write_text

log = logging.getLogger(__name__)

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a ``metrics.jsonl`` or of a file like it.

    Args:
        path: The file; it need not exist.

    Returns:
        All whole lines, in order. A line that a crash has cut short or that is no row is left out, with what follows
        it.
    """
    return _rows_of(path.read_bytes()) if path.is_file() else []


def _rows_of(content: bytes) -> list[Row]:
    """The rows of lines of such a file.

    Args:
        content: Lines; the last may be cut short.

    Returns:
        All whole lines, in order, up to the first that is no row.
    """
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


class EventFile:
    """A listener that writes a row of each event that makes one to ``path``, and a part of a checkpoint, so that a run
    that goes on needs no file from before.

    Each row has ``step``. A row takes the place of an earlier one with the same step and keys: a start that was killed
    before its first checkpoint is made again, and so is what follows the last step. A disk that is full or gone is a
    warning, and the file is tried again at the next row.

    Args:
        path: The file.
        row_of: What an event makes: a row with ``step``, or None.
        warn: Called once with a sentence, where the file cannot be written.
        same: The keys by whose values rows of one step are told apart, where their names are always the same.
    """

    def __init__(
        self,
        path: Path,
        row_of: Callable[[Event], Row | None],
        warn: Callable[[str], None] = log.warning,
        same: tuple[str, ...] = (),
    ) -> None:
        self.path, self.row_of, self.warn, self.same = path, row_of, warn, same
        self._failed = False
        self._last_step = 0
        self._known: set[tuple[Any, ...]] = set()
        self._restored: list[Row] | None = None
        self._missed: list[Row] = []  # which could not be written so far

    def state_dict(self) -> list[Row]:
        """What a checkpoint keeps of it.

        Returns:
            All rows so far.
        """
        try:
            return [*read_rows(self.path), *self._missed]
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
            elif (row := self.row_of(event)) is not None:
                self._write(row)
        except OSError as error:
            if not self._failed:
                self._failed = True
                self.warn(f"{self.path} cannot be written: {error}. The run goes on")

    def _cut_back(self, step: int) -> None:
        found = self._restored if self._restored is not None else read_rows(self.path)
        rows = [row for row in found if row["step"] <= step]
        self._known, self._last_step, self._restored = set(), 0, None
        self._remember(rows)
        if rows or self.path.exists():
            self._write_all(rows)

    def _remember(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._known.add(self._identity(row))
            self._last_step = max(self._last_step, row["step"])

    def _write(self, row: Row) -> None:
        step, identity = row["step"], self._identity(row)
        if not self._known:  # a row before or after a training that this listener has not seen
            self._remember(read_rows(self.path))
        again = identity in self._known or step < self._last_step
        self._remember([row])
        try:
            if again or self._missed:  # half a line may stand at the end: what could not be written is written whole
                found = [*read_rows(self.path), *self._missed]
                rows = [other for other in found if self._identity(other) != identity]
                self._write_all(sorted([*rows, row], key=lambda each: each["step"]))
                self._missed = []
            else:
                with open(self.path, "a", encoding="utf-8") as handle:
                    handle.write(json.dumps(row) + "\n")
        except OSError:
            self._missed.append(row)
            raise

    def _identity(self, row: Row) -> tuple[Any, ...]:
        return row["step"], frozenset(row), *(row.get(key) for key in self.same)

    def _write_all(self, rows: Iterable[Row]) -> None:
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))


class LatestClasses:
    """A listener that keeps the classes of the newest validation in a file: ``step`` and ``classes``, the worst first.

    Args:
        path: The file.
        warn: Called once with a sentence, where the file cannot be written.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] = log.warning) -> None:
        self.path, self.warn = path, warn
        self._failed = False

    def __call__(self, event: Event) -> None:
        """Replace the file, if the event has classes.

        Args:
            event: Any event.
        """
        if not isinstance(event, Validated) or not event.details.classes:
            return
        try:
            write_json(self.path, {"step": event.step, "classes": [asdict(each) for each in event.details.classes]})
        except OSError as error:
            if not self._failed:
                self._failed = True
                self.warn(f"{self.path} cannot be written: {error}. The run goes on")


class RunFiles:
    """The listener of all files that are written line by line, and their part of a checkpoint.

    Args:
        files: By their names in the checkpoint.
        classes: Of the newest validation, which no checkpoint needs.
    """

    def __init__(self, files: Mapping[str, EventFile], classes: LatestClasses) -> None:
        self.files, self.classes = files, classes

    @classmethod
    def of(
        cls,
        metrics: Path,
        milestones: Path,
        validations: Path,
        classes: Path,
        warn: Callable[[str], None] = log.warning,
    ) -> RunFiles:
        """The files of a run.

        Args:
            metrics: Logged steps, validations and other figures.
            milestones: What the owner of the run wants to know of.
            validations: The histograms of similarities.
            classes: The worst classes of the newest validation.
            warn: Called once with a sentence for each file that cannot be written.

        Returns:
            The listener.
        """
        return cls(
            {
                "metrics": EventFile(metrics, metrics_row, warn),
                "milestones": EventFile(milestones, milestone_row, warn, same=("name",)),
                "validations": EventFile(validations, validation_row, warn),
            },
            LatestClasses(classes, warn),
        )

    def state_dict(self) -> dict[str, list[Row]]:
        """What a checkpoint keeps of the files.

        Returns:
            All rows so far, by the file's name.
        """
        return {name: file.state_dict() for name, file in self.files.items()}

    def load_state_dict(self, state: Mapping[str, list[Row]] | None) -> None:
        """Write the files as they were at a checkpoint.

        Args:
            state: From ``state_dict``; None: from a training that had no such files.
        """
        for name, file in self.files.items():
            file.load_state_dict((state or {}).get(name))

    def __call__(self, event: Event) -> None:
        """Hand an event to each file.

        Args:
            event: Any event.
        """
        for file in self.files.values():
            file(event)
        self.classes(event)


def milestone_row(event: Event) -> Row | None:
    """The row of ``milestones.jsonl`` that an event makes.

    Args:
        event: Any event.

    Returns:
        A milestone's attributes; None for another event.
    """
    return finite(asdict(event)) if isinstance(event, Milestone) else None


def validation_row(event: Event) -> Row | None:
    """The row of ``validations.jsonl`` that an event makes.

    Args:
        event: Any event.

    Returns:
        ``step`` and the two histograms of similarities; None for an event without.
    """
    if not isinstance(event, Validated) or event.details.similarities is None:
        return None
    return {"step": event.step, **asdict(event.details.similarities)}


def metrics_row(event: Event) -> Row | None:
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
            "effective_rank": event.effective_rank,
            **{f"seconds_{name}": value for name, value in event.seconds.items()},
            "samples_per_second": event.samples_per_second,
            "memory_mb": event.memory_mb,
            "peak_memory_mb": event.peak_memory_mb,
        }
    elif isinstance(event, InitialValidated):
        row = {"step": 0, **{f"zero_shot_{name}": value for name, value in event.metrics.items()}}
    elif isinstance(event, Validated):
        row = {
            "step": event.step,
            **{f"val_{name}": value for name, value in event.metrics.items()},
            "val_standard_error": event.standard_error,
        }
    elif isinstance(event, Noted) and event.values:
        row = {"step": event.step, **event.values}
    else:
        return None
    return finite(row)


def finite(value: Any) -> Any:
    """A value without infinity and NaN, which JSON does not have.

    Args:
        value: Numbers, strings, and mappings and lists of them.

    Returns:
        The same, with None for such numbers.
    """
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
