"""The phases of a run that are under way, as its events tell of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from domainclip.events import Event, PhaseFinished, PhaseProgress, PhaseStarted
from domainclip.pace import Pace


@dataclass
class PhaseUnderWay:
    """A phase that has begun and has not ended.

    Attributes:
        name: As its events have it.
        pace: How far it is; None where its length is not known.
        began: By ``time.monotonic``.
    """

    name: str
    pace: Pace | None = None
    began: float = field(default_factory=time.monotonic)

    def to_dict(self) -> dict[str, Any]:
        """As ``progress.json`` has it.

        Returns:
            ``name``, ``seconds``, ``done``, ``total`` and ``seconds_left``; None for what is not known.
        """
        return {
            "name": self.name,
            "seconds": round(time.monotonic() - self.began, 1),
            "done": self.pace.done if self.pace else None,
            "total": self.pace.total if self.pace else None,
            "seconds_left": self.pace.seconds_left() if self.pace else None,
        }


class PhasesUnderWay:
    """A listener that knows which phases are under way; going through it gives them, the outermost first."""

    def __init__(self) -> None:
        self._phases: dict[str, PhaseUnderWay] = {}

    def __call__(self, event: Event) -> None:
        """Take an event.

        Args:
            event: Any event.
        """
        if isinstance(event, PhaseStarted):
            pace = Pace(event.total, event.done) if event.total else None
            self._phases[event.name] = PhaseUnderWay(event.name, pace)
        elif isinstance(event, PhaseProgress):
            phase = self._phases.setdefault(event.name, PhaseUnderWay(event.name))
            phase.pace = phase.pace or Pace(event.total)
            phase.pace.observe(event.done)
        elif isinstance(event, PhaseFinished):
            self._phases.pop(event.name, None)

    def __iter__(self) -> Iterator[PhaseUnderWay]:
        return iter(list(self._phases.values()))
