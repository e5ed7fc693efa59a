"""``progress.json``: what a run is doing, for those who look at its folder from another process."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from domainclip.events import (
    Event,
    InitialValidated,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    RunEnded,
    RunStarted,
    Validated,
)
from domainclip.tracking.phases import PhasesUnderWay

log = logging.getLogger(__name__)

EVERY_SECONDS = 0.5
"""It is written no more often."""


class ProgressFile:
    """A listener that keeps ``progress.json`` up to date.

    It has ``state`` (``running``, ``finished``, ``interrupted`` or ``failed``), ``text`` (why it has ended), ``pid``
    and ``host``, ``started_at`` and ``updated_at`` (seconds since 1970), ``step`` and ``total_steps``, and ``phases``:
    those under way, the outermost first, each with ``name``, ``done``, ``total``, ``seconds`` and ``seconds_left``,
    where these are known. It may be half a second old, and nobody waits for the disk: it tells of a run that lives.

    Args:
        path: The file.
        warn: Called once with a sentence, where the file cannot be written.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] = log.warning) -> None:
        self.path, self.warn = path, warn
        self._failed = False
        self._content: dict[str, Any] = {
            "state": "running",
            "text": "",
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started_at": time.time(),
            "step": 0,
            "total_steps": None,
        }
        self._phases = PhasesUnderWay()
        self._written = 0.0

    def __call__(self, event: Event) -> None:
        """Take an event, and write the file if it is time to.

        Args:
            event: Any event.
        """
        self._phases(event)
        at_once = not isinstance(event, PhaseProgress)
        if isinstance(event, RunStarted):
            self._content |= {"step": event.step, "total_steps": event.total_steps}
        elif isinstance(event, PhaseProgress):
            if event.name == "training":
                self._content["step"] = event.done
        elif isinstance(event, InitialValidated | Validated):
            self._content |= {"primary": event.primary, "greater_is_better": event.greater_is_better}
        elif isinstance(event, RunEnded):
            self._content |= {"state": event.outcome, "text": event.text}
        elif not isinstance(event, PhaseStarted | PhaseFinished):
            return
        if at_once or time.monotonic() - self._written >= EVERY_SECONDS:
            self._write()

    def _write(self) -> None:
        phases = [phase.to_dict() for phase in self._phases]
        self._written = time.monotonic()
        temporary = self.path.with_name(f".{self.path.name}.00000000.tmp")  # what ``remove_leftovers`` knows
        try:
            temporary.write_text(json.dumps({**self._content, "updated_at": time.time(), "phases": phases}))
            temporary.replace(self.path)
        except OSError as error:
            if not self._failed:
                self._failed = True
                self.warn(f"{self.path} cannot be written: {error}. The run goes on")
