"""What a probe has done so far, saved from time to time: a run that is killed in it need not begin it anew."""

from __future__ import annotations

import logging
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from domainclip.errors import CheckpointError, Interrupted
from domainclip.signals import StopSignals
from domainclip.training.checkpoint import read_state, write_state

log = logging.getLogger(__name__)

SAVE_SECONDS = 60.0
"""Between two saves. A probe that is over sooner is never saved: made again it ends alike."""


class ProbeProgress:
    """The parts of a probe's work by name (features that are read, the effort that was chosen), in a folder.

    Args:
        folder: Where they are kept.
        identity: Of recipe, rows and weights: parts of another probe are not taken up.
        stop: Says whether a signal has come; the work is then saved and stopped.
    """

    def __init__(self, folder: Path, identity: str, stop: StopSignals | None = None) -> None:
        self.folder, self.identity, self.stop = folder, identity, stop
        self._saved = time.monotonic()
        self._failed = False

    def load(self, name: str) -> dict[str, Any] | None:
        """Look for a part.

        Args:
            name: Of the part.

        Returns:
            What was saved; None where nothing was, or it is damaged or of another probe.
        """
        folder = self.folder / name
        if not folder.is_dir():
            return None
        try:
            content = read_state(folder)
        except CheckpointError as error:
            log.warning("%s; this part of the probe is made again", error)
            return None
        return content["part"] if content.get("identity") == self.identity else None

    def is_due(self, seconds: float | None = None) -> bool:
        """Ask whether it is time to save, by the clock or because a signal wants to stop the run.

        Args:
            seconds: Since the last save; the usual ones, if left out.

        Returns:
            True where the caller should ``save``.
        """
        wanted = SAVE_SECONDS if seconds is None else seconds
        return time.monotonic() - self._saved >= wanted or (self.stop is not None and self.stop.received is not None)

    def save(self, name: str, part: dict[str, Any]) -> None:
        """Write a part. One that cannot be written is a warning, once.

        Args:
            name: Of the part.
            part: Plain values and tensors.

        Raises:
            Interrupted: A signal has come; the part is saved.
        """
        try:
            write_state(self.folder / name, {"identity": self.identity, "part": part})
        except (OSError, RuntimeError) as error:
            if not self._failed:
                self._failed = True
                log.warning("The probe's progress cannot be saved in %s: %s. The run goes on", self.folder, error)
        self._saved = time.monotonic()
        self.check()

    def check(self) -> None:
        """Let a signal stop the run: what is worth saving is saved, and the rest takes seconds to make again.

        Raises:
            Interrupted: A signal has come.
        """
        if self.stop is not None and self.stop.received is not None:
            raise Interrupted(
                self.stop.received,
                f"Stopped by {signal.Signals(self.stop.received).name} in the probe; saved. Resume with resume=True",
            )

    @property
    def is_saved(self) -> bool:
        """Whether there is anything on the disk."""
        return self.folder.is_dir()

    def clear(self) -> None:
        """Delete all parts: what they were for is saved otherwise."""
        shutil.rmtree(self.folder, ignore_errors=True)
