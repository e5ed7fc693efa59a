"""The queue of messages on disk, and who has been told how many of them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from domainclip.files import fsync_path, write_json
from domainclip.tracking.notifications.message import Message

MESSAGES = "messages.jsonl"


class MessageQueue:
    """Messages of a run in ``messages.jsonl``, oldest first, and for each target the number of the last one that it has
    accepted. A line that a crash has cut short is left out.

    Args:
        folder: Where both lie; it is made with the first message.

    Raises:
        OSError: What is there cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / MESSAGES
        self._lock = threading.Lock()
        self._messages = list(_whole_lines(self.path))
        self._keys = {message.key for message in self._messages}

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, message: Message) -> bool:
        """Put a message at the end, unless it is there already. It survives the process from then on; ``sync`` has it
        survive the machine.

        Args:
            message: Its number is ``len(queue) + 1``.

        Returns:
            Whether it is new.

        Raises:
            OSError: It cannot be written.
        """
        with self._lock:
            if message.key in self._keys:
                return False
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b") as file:
                # After half a line that a crash has left.
                if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                    file.write(b"\n")
                file.write(json.dumps(asdict(message)).encode() + b"\n")
            self._messages.append(message)
            self._keys.add(message.key)
            return True

    def sync(self) -> None:
        """Have the disk hold what was added.

        Raises:
            OSError: It cannot.
        """
        if self.path.exists():
            fsync_path(self.path)

    def after(self, number: int) -> list[Message]:
        """The messages that come after one.

        Args:
            number: Of that one; 0 for all.

        Returns:
            In order.
        """
        with self._lock:
            return [message for message in self._messages if message.number > number]

    def told(self, target: str) -> int:
        """How far a target has been told.

        Args:
            target: Its name.

        Returns:
            The number of the last message that it has accepted, 0 for none.
        """
        path = self._record_of(target)
        try:
            return int(json.loads(path.read_text())["told"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def note_told(self, target: str, number: int) -> None:
        """Write down that a target has accepted all messages up to one.

        Args:
            target: Its name.
            number: Of the message.

        Raises:
            OSError: It cannot be written.
        """
        write_json(self._record_of(target), {"target": target, "told": number})

    def _record_of(self, target: str) -> Path:
        """Each target has a file of its own: nobody writes another's."""
        return self.folder / f"told-{hashlib.sha256(target.encode()).hexdigest()[:16]}.json"


def _whole_lines(path: Path) -> Iterator[Message]:
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        try:
            yield Message(**json.loads(line))
        except (ValueError, TypeError):
            continue
