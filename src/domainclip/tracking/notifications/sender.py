"""The thread that sends a target its messages: at most one digest a minute, again and again until it is accepted."""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass

from domainclip.events import Level
from domainclip.tracking.notifications.message import Digest, Message, wanted
from domainclip.tracking.notifications.queue import MessageQueue
from domainclip.tracking.notifications.targets import NotSent, Target

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pauses:
    """Seconds between two messages to a target.

    Attributes:
        between: After one that was accepted.
        first: After the first that was not; twice as long after each further one.
        longest: At most.
        end: The end of a run waits so long for the last one.
    """

    between: float = 60.0
    first: float = 5.0
    longest: float = 600.0
    end: float = 5.0


class Sender:
    """Sends a target what it has not been told yet, in a thread of its own.

    Args:
        target: Where to.
        queue: Of the run.
        run: The name of the run.
        level: The least urgent message that is sent.
        pauses: Between messages.
    """

    def __init__(self, target: Target, queue: MessageQueue, run: str, level: Level, pauses: Pauses) -> None:
        self.target, self.queue, self.run, self.level, self.pauses = target, queue, run, level, pauses
        self._told = queue.told(target.name)
        self._due = 0.0  # by time.monotonic
        self._failures = 0
        self._changed = threading.Condition()
        self._ending: float | None = None
        self._thread = threading.Thread(target=self._work, name=f"notify {target.name}", daemon=True)

    def start(self) -> None:
        """Begin to send, with what waits from before."""
        self._thread.start()

    def wake(self) -> None:
        """Look at the queue: there is a new message."""
        with self._changed:
            self._changed.notify()

    def end(self) -> None:
        """Send what waits at once, and stop; ``join`` waits for it."""
        with self._changed:
            self._ending = time.monotonic() + self.pauses.end
            self._changed.notify()

    def join(self) -> int:
        """Wait for the last message, as long as the end of a run waits.

        Returns:
            How many messages wait still.
        """
        assert self._ending is not None
        self._thread.join(max(0.0, self._ending - time.monotonic()))
        return len(self._waiting())

    def send_waiting(self) -> int:
        """Send what waits, once, from this thread.

        Returns:
            How many messages were accepted.

        Raises:
            NotSent: They were not.
            OSError: That they were accepted cannot be written down.
        """
        waiting = self._waiting()
        if waiting:
            self.target.send(Digest(self.run, tuple(waiting)))
            # Only now: a process that is killed before this tells the same once more, and its number says so.
            self._told = waiting[-1].number
            self.queue.note_told(self.target.name, self._told)
        return len(waiting)

    def _waiting(self) -> list[Message]:
        return wanted(self.queue.after(self._told), self.level)

    def _work(self) -> None:
        while True:
            with self._changed:
                while (pause := self._pause()) is None or pause > 0:
                    if self._ending is not None and pause is None:
                        return
                    self._changed.wait(pause)
            try:
                self.queue.sync()
                self.send_waiting()
                self._failures, self._due = 0, time.monotonic() + self.pauses.between
            except (NotSent, OSError) as error:
                log.debug("notify=%s: %s", self.target.name, error)
                self._failures += 1
                longest = min(self.pauses.longest, self.pauses.first * 2 ** min(self._failures - 1, 20))
                self._due = time.monotonic() + longest * random.uniform(0.5, 1.0)
            if self._ending is not None and time.monotonic() >= self._ending:
                return

    def _pause(self) -> float | None:
        """Seconds until the next message may go; None while nothing waits."""
        waiting = self._waiting()
        if not waiting:
            return None
        left = self._due - time.monotonic()
        if waiting[-1].last and not self._failures:  # the end of a run is told at once
            return 0.0
        if self._ending is not None:
            left = min(left, self.pauses.first / 10 if self._failures else 0.0)
        return left
