"""Trackers follow a run while it goes on: one thread each reads the run's own files, and the loop waits for none."""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from domainclip.events import Emitter, Event, InitialValidated, Milestone, Noted, StepLogged, Validated
from domainclip.registry import load_plugins
from domainclip.tracking.exporters.cursor import ExportsFile
from domainclip.tracking.exporters.exporter import EXPORTERS, Exporter
from domainclip.tracking.exporters.run_files import RunReader
from domainclip.tracking.exporters.sender import Sender

log = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
"""A tracker is sent what is new no more often."""
RETRY_SECONDS = (2.0, 8.0, 30.0, 60.0)
"""Waits between attempts to send: a server that restarts is away for a minute. After the last one it is given up."""
PULLED = "prometheus"
"""Fetches figures itself, so that nothing is sent to it; see ``tracking/prometheus``."""
END_SECONDS = 5.0
"""The end of a run waits no longer for all trackers together."""


def make_exporters(names: Sequence[str], plugins: Sequence[str] = ()) -> dict[str, Exporter]:
    """Make the exporters of a recipe, before the work.

    Args:
        names: As ``report_to`` has them.
        plugins: Modules that may register some.

    Returns:
        By name.

    Raises:
        ConfigurationError: A name is unknown.
        MissingExtraError: A tracker's package is not installed.
    """
    load_plugins(plugins)
    return {name: EXPORTERS[name]() for name in names if name != PULLED}


class ExportThread:
    """Sends one exporter what is new, in a thread that nobody waits for.

    Args:
        sender: Of the exporter.
    """

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.problem = ""
        """Why it has given up; empty while it goes on."""
        self._poked, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"export to {sender.name}", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """Say that there may be something new."""
        self._poked.set()

    def end(self) -> None:
        """Ask for the last figures to be sent, at once."""
        self._ending.set()
        self._poked.set()

    def join(self, seconds: float) -> bool:
        """Wait for it to be through after ``end``.

        Args:
            seconds: At most.

        Returns:
            Whether it is.
        """
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def _work(self) -> None:
        failures = 0
        while True:
            self._poked.wait()
            self._poked.clear()
            ending = self._ending.is_set()
            try:
                self.sender.send()
                if ending:
                    self.sender.finish()
                    return
                failures, pause = 0, EVERY_SECONDS
            except BaseException as error:  # a tracker's client may even exit
                log.debug("Export to %s failed", self.sender.name, exc_info=True)
                if ending or failures == len(RETRY_SECONDS):
                    self.problem = f"{type(error).__name__}: {error}"
                    return
                pause = RETRY_SECONDS[failures]
                failures += 1
                self._poked.set()
            self._ending.wait(pause)


class LiveExport:
    """A listener that wakes the threads of exporters, and tells once of each that has given up.

    Args:
        folder: Of the run.
        exporters: By name.
        emitter: Of the run.
        exports: How far each has come.
    """

    WAKING = (StepLogged, Validated, InitialValidated, Noted, Milestone)

    def __init__(self, folder: Path, exporters: Mapping[str, Exporter], emitter: Emitter, exports: ExportsFile) -> None:
        self.folder, self.emitter = folder, emitter
        self._threads = [
            ExportThread(Sender(name, exporter, RunReader(folder), exports)) for name, exporter in exporters.items()
        ]
        self._told: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Take an event.

        Args:
            event: Any.
        """
        if isinstance(event, self.WAKING):
            for thread in self._threads:
                thread.poke()
        for text in self._problems():
            self.emitter.warn(text)

    def end(self) -> None:
        """Send the last figures, and say of which trackers it is not known that they have all."""
        until = time.monotonic() + END_SECONDS
        for thread in self._threads:
            thread.end()
        late = [thread for thread in self._threads if not thread.join(until - time.monotonic())]
        for text in self._problems():
            log.warning(text)
        for thread in late:
            name = thread.sender.name
            log.warning(f"report_to={name}: the last figures were not sent in time. {self._remedy(name)}")

    def _problems(self) -> Iterator[str]:
        for thread in self._threads:
            name = thread.sender.name
            if thread.problem and name not in self._told:
                self._told.add(name)
                yield f"report_to={name} is switched off ({thread.problem:.500}). {self._remedy(name)}"

    def _remedy(self, name: str) -> str:
        command = shlex.join(["domainclip", "export-metrics", str(self.folder), "--to", name])
        return f"What is missing there is sent by: {command}"


@contextmanager
def exporting(exporters: Mapping[str, Exporter], folder: Path, exports: Path, emitter: Emitter) -> Iterator[None]:
    """Within it a run is followed by trackers. Afterwards they are told how it has ended.

    Args:
        exporters: From ``make_exporters``.
        folder: Of the run.
        exports: Its ``exports.json``.
        emitter: Of the run.

    Yields:
        Nothing.

    Raises:
        DamagedFileError: ``exports.json`` is damaged.
    """
    if not exporters:
        yield
        return
    live = LiveExport(folder, exporters, emitter, ExportsFile(exports))
    emitter.add(live)
    try:
        yield
    finally:
        live.end()


def replay(folder: Path, exports: Path, name: str, exporter: Exporter) -> int:
    """Send a tracker what it has not had of a run that nobody trains any more.

    Args:
        folder: Of the run.
        exports: Its ``exports.json``.
        name: Of the exporter.
        exporter: What knows the tracker.

    Returns:
        Rows that were sent.

    Raises:
        DamagedFileError: ``exports.json`` is damaged.
        Exception: Whatever the exporter raises.
    """
    sender = Sender(name, exporter, RunReader(folder), ExportsFile(exports))
    sender.send()
    sender.finish()
    return sender.rows_sent
