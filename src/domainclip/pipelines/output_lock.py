"""One process at a time writes to an output: a lock that says whose it is, and that a crash releases."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from domainclip.errors import ConfigurationError
from domainclip.files import require_writable
from domainclip.output_record import LOCK_FILE

if sys.platform != "win32":
    import fcntl

_held: set[int] = set()
"""Descriptors of the locks of this process."""


def _let_go_after_fork() -> None:
    """A process that was forked to read images must not keep the lock of a killed one that it read for."""
    while _held:
        with suppress(OSError):
            os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)


@contextmanager
def locked_output(
    path: str | Path, what: str, warn: Callable[[str], object], *, is_file: bool = False
) -> Iterator[None]:
    """Within it no other process writes to an output folder, or to an output file.

    The lock is the operating system's, on a file that is kept open: it goes with the process, however that ends. The
    file says whose it is, and is removed at the end. Where nothing was written, folders that were made for it go, too.

    Args:
        path: The folder, or with ``is_file`` the file.
        what: What messages call it, such as "--output".
        warn: Takes a sentence, where the file system knows no locks.
        is_file: Whether ``path`` is a file.

    Yields:
        Nothing.

    Raises:
        ConfigurationError: Another process has it, or nothing can be written there.
    """
    path = Path(path)
    if is_file and path.exists() and not path.is_file() and not path.is_dir():  # a device or a pipe
        yield
        return
    require_writable(path, what, is_file=is_file)
    place = Path(os.path.realpath(path))
    folder = place.parent if is_file else place
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    lock, owner = folder / (f".{place.name}.lock" if is_file else LOCK_FILE), os.getpid()
    descriptor = -1
    try:
        descriptor = _open_locked(lock, path, warn)
        _held.add(descriptor)
        yield
    finally:
        if os.getpid() == owner:  # a forked process that comes by here has no part in it
            if descriptor in _held:
                with suppress(OSError):
                    lock.unlink()
                _held.discard(descriptor)
                os.close(descriptor)
            for each in made:
                with suppress(OSError):  # it holds something by now
                    each.rmdir()


def _open_locked(lock: Path, path: Path, warn: Callable[[str], object]) -> int:
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except (FileNotFoundError, FileExistsError):  # the one before has just removed the folder that it had made
            if lock.parent.exists() and not lock.parent.is_dir():
                raise
            continue
        try:
            _lock(descriptor, path, warn)
            # The one before may have removed the file between our opening it and our locking it.
            if lock.exists() and os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(facts).encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path, warn: Callable[[str], object]) -> None:
    if sys.platform == "win32":
        warn(f"{path} is not locked on this system: let no other process write there meanwhile")
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(
            f"{path} is being written by another process ({_owner(descriptor)}): wait until it has ended, stop it, or "
            "give another output"
        ) from None
    except OSError as error:
        warn(
            f"{path} lies on a file system that knows no locks ({error.strerror or error}): let no other process "
            "write there meanwhile"
        )


def _owner(descriptor: int) -> str:
    try:
        facts = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {facts['pid']} on {facts['host']}, since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just writing that down
        return "which has just begun"
