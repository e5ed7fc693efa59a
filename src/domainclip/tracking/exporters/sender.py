"""One exporter on its way through a run's files: what it has had is never sent twice, and nothing is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from domainclip.tracking.exporters.cursor import ExportsFile
from domainclip.tracking.exporters.exporter import Exporter, Figures
from domainclip.tracking.exporters.run_files import RunReader

BATCH = 200
"""Rows that are sent at a time."""


class Sender:
    """Sends what is new in a run's files to one tracker.

    Before a batch goes out its rows are written down as being sent, and afterwards as sent. Killed in between, or after
    an error, the exporter is asked which of them have arrived.

    Args:
        name: Of the exporter.
        exporter: What knows the tracker.
        reader: Of the run's files, its own.
        exports: Where it is written down how far it has come.
    """

    def __init__(self, name: str, exporter: Exporter, reader: RunReader, exports: ExportsFile) -> None:
        self.name, self.exporter, self.reader, self.exports = name, exporter, reader, exports
        self.rows_sent = 0
        self._cursor = exports.cursor(name, exporter)
        if not exporter.keeps_at_once and not self._cursor.ended:
            self._cursor.doubt_all()
        self._waiting: list[Figures] = []
        self._started = False

    def send(self) -> None:
        """Send everything that is new.

        Raises:
            Exception: Whatever the exporter raises; what was not sent is sent the next time.
        """
        self._waiting += self.reader.read()
        self._send_waiting()

    def finish(self) -> None:
        """Send what the report has, and end the run at the tracker.

        Raises:
            Exception: Whatever the exporter raises.
        """
        self._waiting += self.reader.of_report()
        self._send_waiting()
        result = self.reader.result()
        if self._cursor.ended == result.outcome:
            return
        with self._connected():
            self.exporter.finish(result)
        self._cursor.ended = result.outcome
        self._write_down()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            self._start()
            yield
        except BaseException:
            self._started = False  # its connection may be what is broken
            if not self.exporter.keeps_at_once:  # and with it what it had taken
                self._cursor.doubt_all()
                self.reader = RunReader(self.reader.folder)
            raise

    def _start(self) -> None:
        if self._started:
            return
        self._cursor.ended = ""
        self._write_down()  # with the run's id, before a tracker has it
        self.exporter.start(self.reader.facts(self.exports.run_id))
        self._started = True

    def _send_waiting(self) -> None:
        self._waiting = _once([row for row in self._waiting if not self._cursor.has_sent(row)])
        if not self._waiting:
            return
        with self._connected():
            self._settle_doubts()
            while self._waiting:
                self._send_batch(self._waiting[:BATCH])
                del self._waiting[:BATCH]

    def _send_batch(self, batch: Sequence[Figures]) -> None:
        self._cursor.sending(batch)
        self._write_down()
        self.exporter.log(batch)
        self._cursor.sent(batch)
        self.rows_sent += len(batch)
        self._write_down()

    def _settle_doubts(self) -> None:
        """Leave out what has arrived of rows that were being sent when something went wrong."""
        doubtful = [row for row in self._waiting if self._cursor.is_in_doubt(row)]
        if not doubtful:
            return
        held = self.exporter.held(doubtful)
        rest = [_without(row, held) if self._cursor.is_in_doubt(row) else row for row in self._waiting]
        self._cursor.sent(row for row in rest if not row.values)
        self._waiting = [row for row in rest if row.values]
        self._write_down()

    def _write_down(self) -> None:
        self.exports.write(self.name, self.exporter, self._cursor)


def _once(rows: Sequence[Figures]) -> list[Figures]:
    """Of rows with the same step and kind the last, at the place of the first."""
    return list({(row.step, row.kind): row for row in rows}.values())


def _without(row: Figures, held: set[tuple[int, str]]) -> Figures:
    return replace(row, values={name: each for name, each in row.values.items() if (row.step, name) not in held})
