"""Standard output and error of a command that must not fail because nobody reads them any more."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EBADF, errno.EIO, errno.ESHUTDOWN)
"""Of a pipe whose reader has ended, a closed file, a terminal that has hung up."""


class LastingStream:
    """A text stream whose reader may go away: from then on what is written is thrown away, and ``other`` is told once.

    Args:
        stream: What is written to.
        name: What messages call it.
        other: Told that nobody reads ``stream`` any more.
        forgiving: Whether a full disk is no error either.
    """

    def __init__(self, stream: TextIO, name: str, other: TextIO | LastingStream | None, *, forgiving: bool) -> None:
        self._stream, self._name, self._other, self._forgiving = stream, name, other, forgiving
        self._gone = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if somebody reads.

        Args:
            text: What to write.

        Returns:
            Its length.

        Raises:
            OSError: The disk is full, and the stream is not forgiving.
        """
        if not self._gone:
            try:
                return self._stream.write(text)
            except (OSError, ValueError) as error:
                self._lost(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts.

        Args:
            lines: The texts.
        """
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what was written, if somebody reads.

        Raises:
            OSError: The disk is full, and the stream is not forgiving.
        """
        if not self._gone:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lost(error)

    def _lost(self, error: OSError | ValueError) -> None:
        number = error.errno if isinstance(error, OSError) else errno.EBADF  # ValueError: closed by Python
        if number not in _GONE and not self._forgiving:
            raise error
        self._gone = True
        with suppress(OSError, ValueError):  # what is still buffered must not fail when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if self._other is not None and not self._forgiving and number != errno.EPIPE:
            with suppress(OSError, ValueError):
                self._other.write(f"{self._name} cannot be written any more ({error}); the work goes on\n")


class StandardErrorHandler(logging.Handler):
    """Writes each record to what standard error is at the time: the one that is there while a line of progress is shown
    takes that away first."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record.

        Args:
            record: What has happened.
        """
        if sys.stderr is not None:
            print(self.format(record), file=sys.stderr, flush=True)


def keep_streams() -> None:
    """Make this process' standard streams last: a closed one leads nowhere, and no file takes its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
    if sys.stderr is not None and not isinstance(sys.stderr, LastingStream):
        sys.stderr = LastingStream(sys.stderr, "The standard error", None, forgiving=True)
    if sys.stdout is not None and not isinstance(sys.stdout, LastingStream):
        other = sys.stderr
        sys.stdout = LastingStream(sys.stdout, "The standard output", other, forgiving=False)
