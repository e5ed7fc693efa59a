"""The rows of a file of lines that another process writes, read again and again without reading all of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

from domainclip.tracking.jsonl import Row


class Tail:
    """Reads what was added to a file since the last time.

    A file that was written anew (a resumed run cuts its files back) is read from its beginning. Half a line at the end
    waits for its other half; a line that is no row is left out.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._seen: bytes = b""  # the last bytes that were read: what an appended file still has there

    def read(self) -> tuple[bool, list[Row]]:
        """Read what is new.

        Returns:
            Whether everything that was read before no longer holds, and the new rows.

        Raises:
            OSError: The file is there and cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                return self._read(file)
        except FileNotFoundError:
            return self._begin_anew(None), []

    def _read(self, file: BinaryIO) -> tuple[bool, list[Row]]:
        found = os.fstat(file.fileno())
        identity = found.st_dev, found.st_ino
        file.seek(max(0, self._offset - len(self._seen)))
        same = identity == self._file and found.st_size >= self._offset and file.read(len(self._seen)) == self._seen
        anew = False if same else self._begin_anew(identity)
        file.seek(self._offset)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._seen = (self._seen + whole)[-64:]
        return anew, [row for line in whole.splitlines() if (row := _row(line)) is not None]

    def _begin_anew(self, identity: tuple[int, int] | None) -> bool:
        had_read = self._offset > 0
        self._file, self._offset, self._seen = identity, 0, b""
        return had_read


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if isinstance(step, int) and abs(step) < 2**53 else None
