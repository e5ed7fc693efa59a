"""Work that several processes share, on one machine or on several with a common folder: who has claimed what.

A claim is a file that nobody else can have made (``O_EXCL``). It counts while its owner touches it. One that has run
out is not taken away but outnumbered: the next owner makes the file with the next higher number, the fencing token
(Kleppmann 2016, "How to do distributed locking"), and whoever has a lower one may not write any more.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

LEASE_SECONDS = 60.0
"""A claim that was not touched for so long has run out: its owner is dead, asleep or cut off."""
_FILE = re.compile(r"(?P<name>.+)\.(?P<token>\d+)\.(?P<state>lease|free)")


class Lease:
    """A claim that is touched by a thread of its own until it is released.

    Args:
        folder: Of all claims.
        name: Of the work.
        token: The fencing token.
        seconds: After which an untouched claim has run out.
    """

    def __init__(self, folder: Path, name: str, token: int, seconds: float) -> None:
        self.folder, self.name, self.token = folder, name, token
        self.path = folder / f"{name}.{token}.lease"
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._touch, args=(seconds / 4,), daemon=True)
        self._thread.start()

    def _touch(self, every: float) -> None:
        while not self._released.wait(every):
            with suppress(OSError):  # a moment without network is no reason to give up: ``is_held`` tells
                os.utime(self.path)

    @property
    def is_held(self) -> bool:
        """Whether nobody has a higher token for the same work."""
        return self.path.exists() and _newest(self.folder, self.name)[0] == self.token

    def release(self) -> None:
        """Give the work free. Its number stays, so that the next owner's is higher."""
        self._released.set()
        self._thread.join()
        with suppress(FileNotFoundError):
            os.replace(self.path, self.path.with_suffix(".free"))


class Leases:
    """All claims of one folder.

    Args:
        folder: Made where it is not there; on a disk that all workers see.
        seconds: After which an untouched claim has run out.
    """

    def __init__(self, folder: Path, seconds: float = LEASE_SECONDS) -> None:
        self.folder, self.seconds = folder, seconds

    def claim(self, name: str) -> Lease | None:
        """Try to claim some work.

        Args:
            name: Of the work, as a file may be called.

        Returns:
            The claim; None while somebody else has one.

        Raises:
            OSError: The folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        newest, claimed = _newest(self.folder, name)
        if claimed is not None and self._is_live(claimed):
            return None
        path = self.folder / f"{name}.{newest + 1}.lease"
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:  # somebody was faster
            return None
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid())}))
        for token, old in _files(self.folder, name):
            if token < newest:  # not the one before: whoever counted with it must not make its number again
                with suppress(OSError):
                    old.unlink()
        return Lease(self.folder, name, newest + 1, self.seconds)

    @contextmanager
    def held(self, name: str) -> Iterator[Lease]:
        """Within it some work is claimed, waited for as long as it takes.

        Args:
            name: Of the work.

        Yields:
            The claim.

        Raises:
            OSError: The folder cannot be written.
        """
        while (lease := self.claim(name)) is None:
            threading.Event().wait(min(0.2, self.seconds / 4))
        try:
            yield lease
        finally:
            lease.release()

    def forget(self, name: str) -> None:
        """Take away what there is of some work that is done: whoever still has a claim on it has it no more.

        Args:
            name: Of the work.
        """
        for _, path in _files(self.folder, name):
            path.unlink(missing_ok=True)

    def live(self) -> list[str]:
        """Names of the work that somebody has claimed.

        Returns:
            Those whose claim has not run out.
        """
        names = {match["name"] for path in self.folder.glob("*.lease") if (match := _FILE.fullmatch(path.name))}
        newest = {name: _newest(self.folder, name)[1] for name in sorted(names)}
        return [name for name, path in newest.items() if path is not None and self._is_live(path)]

    def _is_live(self, path: Path) -> bool:
        """Whether a claim counts. That of a dead process of this machine does not, however fresh it is."""
        with suppress(OSError, ValueError):  # not yet written, or released just now
            owner = json.loads(path.read_text(encoding="utf-8"))
            if owner["host"] == socket.gethostname() and _began(owner["pid"]) != owner["began"]:
                return False
        return self._age(path) < self.seconds

    def _age(self, path: Path) -> float:
        """Seconds since a claim was touched, by the clock of the disk that it lies on, which is another machine's."""
        probe = self.folder / f".{uuid.uuid4().hex[:8]}.now"
        try:
            probe.touch()
            return probe.stat().st_mtime - path.stat().st_mtime
        except FileNotFoundError:  # released just now
            return float("inf")
        finally:
            probe.unlink(missing_ok=True)


def _began(pid: int) -> float | None:
    """When a process of this machine began, which tells it from a later one of the same number; None for none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _files(folder: Path, name: str) -> list[tuple[int, Path]]:
    found = ((_FILE.fullmatch(path.name), path) for path in folder.glob(f"{name}.*"))
    return [(int(match["token"]), path) for match, path in found if match is not None and match["name"] == name]


def _newest(folder: Path, name: str) -> tuple[int, Path | None]:
    """The highest token, and its file where it is not released."""
    token, path = max(_files(folder, name), default=(0, None))
    return token, path if path is not None and path.suffix == ".lease" else None
