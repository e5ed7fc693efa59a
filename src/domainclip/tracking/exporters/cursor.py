"""``exports.json``: how far each tracker has been told, so that a run that goes on leaves no gap and no double."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from domainclip.errors import DamagedFileError
from domainclip.files import read_record, write_record
from domainclip.tracking.exporters.exporter import Exporter, Figures


class StepSet:
    """Steps, kept as arithmetic progressions: a hundred thousand that are logged regularly take three numbers.

    Args:
        text: From ``str``: each progression as first+difference*count.
    """

    def __init__(self, text: str = "") -> None:
        self._progressions = [[int(number) for number in re.split(r"[+*]", each)] for each in text.split()]
        self._steps = {first + index * stride for first, stride, count in self._progressions for index in range(count)}

    def __contains__(self, step: object) -> bool:
        return step in self._steps

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def add(self, step: int) -> None:
        """Add a step.

        Args:
            step: Any; one that is there changes nothing.
        """
        if step in self._steps:
            return
        self._steps.add(step)
        if self._progressions:
            last = self._progressions[-1]
            first, stride, count = last
            if count == 1:
                last[1:] = step - first, 2
                return
            if step == first + stride * count:
                last[2] += 1
                return
        self._progressions.append([step, 0, 1])

    def __str__(self) -> str:
        return " ".join(f"{first}+{stride}*{count}" for first, stride, count in self._progressions)


class Cursor:
    """Which rows one exporter has sent, and which it was sending when it was last heard of.

    Args:
        content: From ``to_dict``.
    """

    def __init__(self, content: Mapping[str, Any] | None = None) -> None:
        content = content or {}
        self._sent = {kind: StepSet(steps) for kind, steps in content.get("sent", {}).items()}
        self._sending = {kind: StepSet(steps) for kind, steps in content.get("sending", {}).items()}
        self.ended: str = content.get("ended", "")
        """How the tracker was told that the run has ended; empty while it is not, and once it goes on."""

    def has_sent(self, row: Figures) -> bool:
        """Whether a row, or an equal one of before a resumption, has arrived.

        Args:
            row: Any.

        Returns:
            True only where that is certain.
        """
        return row.step in self._sent.get(row.kind, ())

    def is_in_doubt(self, row: Figures) -> bool:
        """Whether a row was being sent, and nobody knows if it arrived.

        Args:
            row: Any.

        Returns:
            False for rows that were never tried.
        """
        return row.step in self._sending.get(row.kind, ())

    def sending(self, rows: Iterable[Figures]) -> None:
        """Note that rows are about to be sent.

        Args:
            rows: Those.
        """
        for row in rows:
            self._sending.setdefault(row.kind, StepSet()).add(row.step)

    def sent(self, rows: Iterable[Figures]) -> None:
        """Note that rows have arrived.

        Args:
            rows: Those.
        """
        gone: dict[str, set[int]] = {}
        for row in rows:
            self._sent.setdefault(row.kind, StepSet()).add(row.step)
            gone.setdefault(row.kind, set()).add(row.step)
        left = {kind: sorted(set(steps) - gone.get(kind, set())) for kind, steps in self._sending.items()}
        self._sending = {kind: _step_set(steps) for kind, steps in left.items() if steps}

    def doubt_all(self) -> None:
        """Take nothing for certain that was sent so far."""
        for kind, steps in self._sent.items():
            before = self._sending.get(kind, ())
            self._sending[kind] = _step_set(sorted({*before, *steps}))
        self._sent = {}

    def to_dict(self) -> dict[str, Any]:
        """What ``exports.json`` keeps of it.

        Returns:
            Plain values.
        """
        sets = {
            name: {kind: str(steps) for kind, steps in each.items()}
            for name, each in (("sent", self._sent), ("sending", self._sending))
        }
        return {**sets, "ended": self.ended}


def _step_set(steps: Iterable[int]) -> StepSet:
    made = StepSet()
    for step in steps:
        made.add(step)
    return made


class ExportsFile:
    """``exports.json``. Several exporters share it, each in its own thread.

    Args:
        path: The file; it need not be there.

    Raises:
        DamagedFileError: It is not as it was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            content = read_record(path) if path.exists() else {}
        except DamagedFileError as error:
            raise DamagedFileError(
                f"{error}. Delete it, and what trackers have of this run, to send all of it anew"
            ) from None
        self.run_id: str = content.get("run_id") or uuid.uuid4().hex
        """By which trackers know the run."""
        self._trackers: dict[str, Any] = content.get("trackers", {})

    def cursor(self, name: str, exporter: Exporter) -> Cursor:
        """Where an exporter left off.

        Args:
            name: Its own.
            exporter: For its destination: at another one, it begins anew.

        Returns:
            A cursor, which is empty where it has not sent anything there.
        """
        return Cursor(self._trackers.get(_key(name, exporter)))

    def write(self, name: str, exporter: Exporter, cursor: Cursor) -> None:
        """Write down where an exporter is.

        Args:
            name: Its own.
            exporter: For its destination.
            cursor: Its.

        Raises:
            OSError: The file cannot be written.
        """
        content = cursor.to_dict()
        with self._lock:
            self._trackers[_key(name, exporter)] = content
            write_record(self.path, {"run_id": self.run_id, "trackers": self._trackers})


def _key(name: str, exporter: Exporter) -> str:
    return f"{name} {exporter.destination}".strip()
