"""Whether images can be read in processes of their own, as far as the user's script goes.

Where processes are spawned (macOS, Windows), each imports the script it was started from once more, to find what is
defined there. A script that starts its work at the top level would then start it again in every reader. Python's remedy
is the guard ``if __name__ == "__main__":``; a script without it is read in one process instead.
"""

from __future__ import annotations

import ast
import errno
import logging
import multiprocessing
import pickle
import sys
from collections.abc import Iterable
from functools import lru_cache
from multiprocessing import process
from pathlib import Path

from domainclip.data.reader_files import hold_reader_files
from domainclip.errors import CLIPFinetuningError, ConfigurationError, MemoryConstraintError

_LOG = logging.getLogger(__name__)

GUARD = 'if __name__ == "__main__":'


def reader_processes(wanted: int, carried: Iterable[object]) -> int:
    """How many processes may read, which is said where it is fewer than were wanted.

    Args:
        wanted: How many the recipe or the caller asks for.
        carried: What of the user's own each of them would need: a data set, a transform.

    Returns:
        ``wanted``, or 0.
    """
    reason = _obstacle(list(carried)) if wanted > 0 and start_method() != "fork" else None
    if reason is None:
        if wanted > 0:
            hold_reader_files()
        return wanted
    _LOG.warning("Images are read in this process, not in %d of their own: %s", wanted, reason)
    return 0


def start_method() -> str:
    """How processes are started here, without settling it for the program.

    Returns:
        "fork", "spawn" or "forkserver".
    """
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def refuse_within_a_reader() -> None:
    """End a process that was started to read, and has come to the script's own work by importing it.

    Raises:
        SystemExit: This process is still importing the script that started it.
    """
    if getattr(process.current_process(), "_inheriting", False):
        # Silent: the process that started this one says what is wrong, once.
        raise SystemExit(1)


def lack_of_shared_memory(error: BaseException) -> CLIPFinetuningError | None:
    """What it means when a loader's processes cannot hand over what they have read: they do it in shared memory, of
    which containers have 64 MB.

    Args:
        error: Raised by a ``DataLoader``.

    Returns:
        The error to raise instead; None, if it is about something else.
    """
    no_space = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if not no_space and not any(words in str(error) for words in ("shared memory", "Bus error", "No space left")):
        return None
    return MemoryConstraintError(
        "The shared memory (/dev/shm) is too small for the processes that read images. Set num_workers=0, or give the "
        "container more of it (docker run --shm-size=2g)"
    )


def without_readers(error: RuntimeError) -> CLIPFinetuningError | None:
    """What it means when a loader's processes have ended before they read anything.

    Args:
        error: Raised by a ``DataLoader``.

    Returns:
        The error to raise instead; None, if it is about something else.
    """
    if "DataLoader worker" not in str(error) or start_method() == "fork":
        return None
    return ConfigurationError(
        f"The processes that read images ended at once. They import this script once more: put what it does under "
        f"{GUARD}, or set num_workers=0. ({error})"
    )


def _obstacle(carried: list[object]) -> str | None:
    main = sys.modules["__main__"]
    for each in carried:
        try:
            content = pickle.dumps(each)
        except Exception as error:  # whatever the user's own classes raise
            return f"{type(each).__name__} cannot be sent to another process ({error})"
        if b"__main__" in content and getattr(main, "__file__", None) is None:
            return f"{type(each).__name__} is defined in a notebook or on the command line: put it into a .py file"
    file = getattr(main, "__file__", None)
    if file is None:
        return None
    if not Path(file).is_file():
        return f"the program comes from {file}, which they cannot read: save it as a .py file"
    if _guarded(file, _line_of(main.__dict__)):
        return None
    return f"{file} has no guard. Put what it does under {GUARD}"


def _line_of(names: dict[str, object]) -> int | None:
    """The line of the script that is being executed at its top level; None, if another thread asks."""
    frame, line = sys._getframe(), None
    while frame is not None:
        if frame.f_globals is names and frame.f_code.co_name == "<module>":
            line = frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return line


@lru_cache(maxsize=64)
def _guarded(file: str, line: int | None) -> bool:
    """Whether a line of a script is under a guard (any, where the line is not known). What is no source is taken to be.

    Installed commands are such files, and programs made of bytes.
    """
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True
    guards = [
        node
        for node in tree.body
        if isinstance(node, ast.If)
        and any(isinstance(name, ast.Name) and name.id == "__name__" for name in ast.walk(node.test))
    ]
    if line is None:
        return bool(guards)
    return any(guard.lineno <= line <= (guard.end_lineno or guard.lineno) for guard in guards)
