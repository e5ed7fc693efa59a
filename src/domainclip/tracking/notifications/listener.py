"""The listener that puts what people are to be told into the queue, and its life with the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from domainclip.events import Event, ImageSkipped, Level
from domainclip.tracking.notifications.message import message_of
from domainclip.tracking.notifications.queue import MessageQueue
from domainclip.tracking.notifications.sender import Pauses, Sender
from domainclip.tracking.notifications.targets import Target

log = logging.getLogger(__name__)


class NotificationListener:
    """A listener that queues messages and wakes those who send them.

    Args:
        queue: Of the run.
        senders: One for each target.
        warn: Called once with a sentence, where the queue cannot be written.
    """

    def __init__(self, queue: MessageQueue, senders: Sequence[Sender], warn: Callable[[str], None]) -> None:
        self.queue, self.senders, self.warn = queue, senders, warn
        self._skipped = 0
        self._failed = False

    def __call__(self, event: Event) -> None:
        """Queue what the event has to tell, if anything.

        Args:
            event: Any event.
        """
        self._skipped += isinstance(event, ImageSkipped)
        message = message_of(event, len(self.queue) + 1, self._skipped)
        if message is None:
            return
        try:
            new = self.queue.add(message)
        except OSError as error:
            if not self._failed:
                self._failed = True
                self.warn(f"{self.queue.path} cannot be written: {error}. Nobody is told of what happens meanwhile")
            return
        for sender in self.senders if new else ():
            sender.wake()


@contextmanager
def notifications(
    targets: Sequence[Target],
    level: Level,
    folder: Path,
    run: str,
    warn: Callable[[str], None] = log.warning,
    pauses: Pauses | None = None,
) -> Iterator[NotificationListener]:
    """Tell people of a run for as long as the block runs; then wait a few seconds for the last message.

    Args:
        targets: From ``targets_of``.
        level: The least urgent that is told; the end of the run always is.
        folder: Of the queue.
        run: The name of the run.
        warn: Takes a sentence where messages cannot be written or are left over.
        pauses: Between messages.

    Yields:
        The listener.
    """
    queue = MessageQueue(folder)
    senders = [Sender(target, queue, run, level, pauses or Pauses()) for target in targets]
    for sender in senders:
        sender.start()
    try:
        yield NotificationListener(queue, senders, warn)
    finally:
        for sender in senders:
            sender.end()
        for sender in senders:
            if left := sender.join():
                warn(
                    f"{left} messages to notify={sender.target.name} could not be sent. They wait in {folder}: "
                    f"`domainclip notify {folder.parent}` sends them"
                )
