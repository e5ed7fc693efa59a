"""Signals that end the work: at once, or when a step is finished and saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from domainclip.errors import Interrupted

SIGNALS = tuple(
    number
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None  # Windows has no SIGHUP
)


class StopNow(BaseException):
    """Raised wherever the main thread is when the work is to end at once. No ``Exception``, so that nobody takes it for
    a failure of what was being done; ``StopSignals.watch`` turns it into ``Interrupted``."""


class StopSignals:
    """Remembers the first SIGINT, SIGTERM or SIGHUP in ``received``, so that what is under way can be finished and
    saved; a second one stops at once.

    Args:
        say: Tells the user that the first one has been heard.
        at_once: The first one stops at once, too.
    """

    def __init__(self, say: Callable[[str], object] = lambda text: None, *, at_once: bool = False) -> None:
        self.say, self.at_once = say, at_once
        self.received: int | None = None
        self.advice = ""
        """Ends the message of ``Interrupted``: what to do now."""

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Take the signals over while the block runs. Python allows that in the main thread only: elsewhere the
        caller keeps them. A signal that is ignored (``nohup``) stays so. One that the block has made no use of goes to
        the handler of before.

        Yields:
            Nothing; the handlers of before are put back at the end.

        Raises:
            Interrupted: A signal has stopped the block at once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        process, stopped = os.getpid(), False

        def handle(number: int, frame: FrameType | None) -> None:
            if os.getpid() != process:  # a worker that was forked: its parent ends it
                if number != signal.SIGINT:
                    os._exit(128 + number)
                return
            second, self.received = self.received is not None, number
            if second or self.at_once:
                raise StopNow
            self.say(f"{signal.Signals(number).name}: finishing this step, then saving …")

        self.received = None
        hangup = getattr(signal, "SIGHUP", None)
        before = {
            number: signal.signal(number, handle)
            for number in SIGNALS
            if not (number == hangup and signal.getsignal(number) == signal.SIG_IGN)
        }
        try:
            yield
        except StopNow:
            stopped = True
        except BaseException:
            self.received = None
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self.received is not None and not stopped and not self.at_once:
                signal.raise_signal(self.received)
        if stopped:
            assert self.received is not None
            raise Interrupted(self.received, f"Stopped by {signal.Signals(self.received).name}{self.advice}")
