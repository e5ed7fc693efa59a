"""Signals during a study: the loop answers those that come while it trains; these are all the others."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from domainclip.errors import Interrupted
from domainclip.signals import SIGNALS, StopSignals


class StudySignals(StopSignals):
    """Remembers the first SIGINT, SIGTERM or SIGHUP, also one that the training loop has taken and found no use for.

    The loop's own handler replaces this one while it trains, and it does not stop for a signal that comes in its last
    step or before a trial is pruned. Python's wake-up socket gets every signal's number, whoever handles it.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console.print)
        self._inbox: socket.socket | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Listen to signals while the context lasts.

        Returns:
            A context manager.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._inbox, outbox = socket.socketpair()
        self._inbox.setblocking(False)
        outbox.setblocking(False)
        before = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
        try:
            with super().watch():
                yield
        finally:
            signal.set_wakeup_fd(before)
            self._inbox.close()
            outbox.close()
            self._inbox = None

    def check(self) -> None:
        """Stop where a signal has come.

        Raises:
            Interrupted: one has.
        """
        if self._inbox is not None and not self.received:
            try:
                numbers = self._inbox.recv(64)
            except BlockingIOError:
                numbers = b""
            self.received = next((n for n in numbers if n in SIGNALS), None)
        if self.received:
            raise Interrupted(self.received, f"Stopped by {signal.Signals(self.received).name}")
