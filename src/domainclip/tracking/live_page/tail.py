"""The rows of a file of lines that another process writes, read again and again without reading all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Read what is new.

        Returns:
            Whether everything that was read before no longer holds, and the new rows.
        """
        try:
            with open(self.path, "rb") as file:
                found = file.seek(0, 2), self.path.stat()
                size, identity = found[0], (found[1].st_dev, found[1].st_ino)
                file.seek(max(0, self._offset - len(self._seen)))
                anew = identity != self._file or size < self._offset or file.read(len(self._seen)) != self._seen
                if anew:
                    had = self._file is not None and self._offset > 0
                    self._file, self._offset, self._seen = identity, 0, b""
                else:
                    had = False
                file.seek(self._offset)
                content = file.read()
        except OSError:
            had = self._offset > 0
            self._file, self._offset, self._seen = None, 0, b""
            return had, []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._seen = (self._seen + whole)[-64:]
        return had, [row for line in whole.splitlines() if (row := _row(line)) is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if isinstance(step, int) and abs(step) < 2**53 else None
