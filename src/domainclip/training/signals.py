"""Signals that end a training once its step is finished and saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console


class StopSignals:
    """Remembers the first SIGINT or SIGTERM in ``received``, so that the step can be finished and saved; a second one
    stops at once (``KeyboardInterrupt``).

    Args:
        console: Says that the first one has been heard.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.received: int | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Take the signals over while the block runs. Python allows that in the main thread only: elsewhere the
        caller keeps them.

        Yields:
            Nothing; the handlers of before are put back at the end.

        Raises:
            KeyboardInterrupt: At a second signal.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self.received:
                raise KeyboardInterrupt
            self.received = number
            self.console.print(f"{signal.Signals(number).name}: finishing this step, then saving …")

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
