"""Work that takes long says how far it is."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

FIRST_SECONDS = 2.0
"""Work that is done sooner says nothing."""
_ON_TERMINAL, _IN_FILE = 0.2, 30.0  # seconds between two lines
_saying = False  # what is part of longer work leaves it to that to say how far it is


def said_while_waiting(items: Iterable[T], total: int, what: str, each: int = 1) -> Iterator[T]:
    """Hand items on, and say on standard error how many there were, once that takes longer than a moment.

    On a terminal one line is written over again and removed at the end; elsewhere a line is written every half minute.
    Nothing is said where the level of the logger ``domainclip`` is above warnings.

    Args:
        items: Each is made as it is asked for.
        total: How many there are.
        what: What is being done.
        each: How many of ``total`` an item stands for, where items are batches.

    Returns:
        The items.
    """
    global _saying
    inner, _saying = _saying, True
    due, shown = time.monotonic() + FIRST_SECONDS, False
    # Where a progress bar has taken the terminal over, standard error is another object.
    terminal = sys.__stderr__ is not None and sys.stderr is sys.__stderr__ and sys.__stderr__.isatty()
    try:
        for done, item in enumerate(items):
            if (
                not inner
                and time.monotonic() >= due
                and sys.stderr is not None
                and logging.getLogger(__name__).isEnabledFor(logging.WARNING)
            ):
                line = f"{what}: {done * each:,} of {total:,}"
                sys.stderr.write(f"\r{line}\x1b[K" if terminal else f"{line}\n")
                sys.stderr.flush()
                due, shown = time.monotonic() + (_ON_TERMINAL if terminal else _IN_FILE), True
            yield item
    finally:
        _saying = inner
        if shown and terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
