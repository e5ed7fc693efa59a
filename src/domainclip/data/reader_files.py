"""The folder of the sockets over which reader processes hand their batches to this one.

``multiprocessing`` makes such a folder in the system's temporary one, and a process that is killed leaves it there for
good. Here it lies in one of ours with a lock that goes with the process, so that the next start knows what is left.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import suppress
from multiprocessing import util
from pathlib import Path

from domainclip.errors import ConfigurationError

if sys.platform != "win32":
    import fcntl

_PREFIX, _LOCK = "domainclip-", "lock"
_LONGEST = 50
"""Bytes of the temporary folder's path: a socket's whole path has about 100 on some systems, and readers hang if it is
longer."""
_made: list[int] = []
"""The process that has made its folder; a forked one works in that of its parent."""


def hold_reader_files() -> None:
    """Make this process's folder, and remove those of processes that were killed. Without effect the second time, where
    the program has such a folder already, and where the system knows no locks.

    Raises:
        ConfigurationError: Nothing can be written to the system's temporary folder.
    """
    if sys.platform == "win32" or _made:
        return
    try:
        _hold()
    except OSError as error:
        raise ConfigurationError(
            f"The processes that read images need the system's temporary folder, which cannot be written ({error}): "
            "make room there, name another one in the environment (TMPDIR), or set num_workers=0"
        ) from error


def _hold() -> None:
    place = tempfile.gettempdir()
    if len(os.fsencode(place)) > _LONGEST and os.access("/tmp", os.W_OK):
        place = "/tmp"
    _remove_left_over(Path(place))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    new = folder / f"{_LOCK}.new"
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT)  # open as long as the process is, and those that it forks
    with suppress(OSError):  # no locks on this file system: nothing there is ever taken for left over
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder / _LOCK)
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        util.get_temp_dir()
    finally:
        tempfile.tempdir = before
    _made.append(os.getpid())
    util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-200)  # after the sockets' own


def _remove_left_over(temporary: Path) -> None:
    """Remove folders of ours whose lock nobody holds any more."""
    for lock in temporary.glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError):  # another user's, or just gone
            if lock.parent.is_symlink() or lock.parent.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(descriptor)
