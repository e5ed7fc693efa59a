"""Signals that end the work: at once, or when a step is finished and saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from domainclip.errors import Interrupted

SIGNALS = tuple(
    number
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None  # Windows has no SIGHUP
)


class StopNow(BaseException):
    """Raised wherever the main thread is when the work is to end at once. No ``Exception``, so that nobody takes it for
    a failure of what was being done; ``StopSignals.watch`` turns it into ``Interrupted``.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class _Process:
    watching: int = 0  # blocks that watch, one within the other
    is_leaving: bool = False  # a ``StopNow`` is on its way out of them


_process = _Process()


class StopSignals:
    """Remembers the first SIGINT, SIGTERM or SIGHUP in ``received``, so that what is under way can be finished and
    saved; a second one stops at once. One more that comes while files are closed and locks released ends the process
    as it is: what was saved is whole, the system releases its locks, and the next start removes what is left.

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
        process, closing, failed = os.getpid(), False, False
        stopped: int | None = None

        def handle(number: int, frame: FrameType | None) -> None:
            if os.getpid() != process:  # a worker that was forked: its parent ends it
                if number != signal.SIGINT:
                    os._exit(128 + number)
                return
            if _process.is_leaving:
                os._exit(128 + number)
            second, self.received = self.received is not None, number
            if closing:
                return
            if second or self.at_once:
                _process.is_leaving = True
                raise StopNow(number)
            with suppress(RuntimeError):  # the signal has come in the midst of a write to the same stream
                self.say(f"{signal.Signals(number).name}: finishing this step, then saving …")

        self.received = None
        hangup = getattr(signal, "SIGHUP", None)
        before = {
            number: signal.signal(number, handle)
            for number in SIGNALS
            if not (number == hangup and signal.getsignal(number) == signal.SIG_IGN)
        }
        _process.watching += 1
        try:
            yield
        except StopNow as stop:
            stopped = stop.number
        except BaseException:
            failed, self.received = True, None
            raise
        finally:
            closing = True
            for number, handler in before.items():
                signal.signal(number, handler)
            _process.watching -= 1
            if not _process.watching:
                _process.is_leaving = False
            if stopped is None and self.received is not None:
                if self.at_once and not failed:  # it came when the block had just ended
                    stopped = self.received
                else:
                    signal.raise_signal(self.received)
        if stopped is not None:
            raise Interrupted(stopped, f"Stopped by {signal.Signals(stopped).name}{self.advice}")


def leave_at_the_next() -> None:
    """End this process as it is at the next signal: for a command that has stopped, and has but a line to print."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda received, frame: os._exit(128 + received))
