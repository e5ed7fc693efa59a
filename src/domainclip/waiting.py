"""Work that takes long says how far it is."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

T = TypeVar("T")

FIRST_SECONDS = 2.0
"""Work that is done sooner says nothing."""
_ON_TERMINAL, _IN_FILE = 0.2, 30.0  # seconds between two lines
_saying = False  # what is part of longer work leaves it to that to say how far it is


class Progress:
    """A line on standard error that says how far some work is, how fast, and how long the rest will take.

    On a terminal one line is written over again and removed at the end; elsewhere a line is written every half minute.
    Nothing is said within the first moment, nor where the level of the logger ``domainclip`` is above warnings, nor of
    work that is part of other work with such a line.

    Args:
        total: Of what is counted.
        what: What is being done.
    """

    def __init__(self, total: int, what: str) -> None:
        self.total, self.what = total, what

    def __enter__(self) -> Self:
        global _saying
        self._inner, _saying = _saying, True
        self._began = time.monotonic()
        self._due, self._shown = self._began + FIRST_SECONDS, False
        # Where a progress bar has taken the terminal over, standard error is another object.
        self._terminal = sys.__stderr__ is not None and sys.stderr is sys.__stderr__ and sys.__stderr__.isatty()
        return self

    def at(self, done: int) -> None:
        """Say how much is done, if it is time to.

        Args:
            done: Of ``total``.
        """
        now = time.monotonic()
        if self._inner or now < self._due or sys.stderr is None:
            return
        if not logging.getLogger(__name__).isEnabledFor(logging.WARNING):
            return
        line = f"{self.what}: {done:,} of {self.total:,}{self._pace(done, now - self._began)}"
        sys.stderr.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
        sys.stderr.flush()
        self._due, self._shown = now + (_ON_TERMINAL if self._terminal else _IN_FILE), True

    def _pace(self, done: int, seconds: float) -> str:
        if not 0 < done < self.total:
            return ""
        rate = done / seconds
        left = (self.total - done) / rate
        remaining = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min" if left < 5400 else f"{left / 3600:.1f} h"
        return f" ({rate:,.3g}/s, {remaining} left)"

    def __exit__(self, *_: object) -> None:
        global _saying
        _saying = self._inner
        if self._shown and self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def said_while_waiting(items: Iterable[T], total: int, what: str, each: int = 1) -> Iterator[T]:
    """Hand items on, and say how many there were; see ``Progress``.

    Args:
        items: Each is made as it is asked for.
        total: How many there are.
        what: What is being done.
        each: How many of ``total`` an item stands for, where items are batches.

    Returns:
        The items.
    """
    with Progress(total, what) as progress:
        for done, item in enumerate(items):
            progress.at(done * each)
            yield item
