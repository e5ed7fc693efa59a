"""Work that takes long says what it is and how far: the one line that the whole package shows.

On a terminal the line is drawn over again by a thread while any work is under way, so that nothing is silent, whatever
the work is busy with; what others print takes the line away first. Elsewhere it is a line of the log now and then.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self, TextIO, TypeVar

from domainclip.pace import Pace, duration

T = TypeVar("T")

FIRST_SECONDS = 1.0
"""Work that is done sooner says nothing, and part of other work is named only if it takes longer."""
ON_TERMINAL_SECONDS = 0.2
"""Between two looks at whether the line has changed."""
STILL_SECONDS = 1.0
"""A line that has not changed is drawn again after these."""
IN_FILE_SECONDS = 30.0
"""Between two lines, where there is no terminal."""
_BAR = 20  # characters


class Progress:
    """Work that is under way, for as long as the block runs.

    On a terminal standard error has one line for the outermost work of known length and the innermost work: what is
    being done, how far it is, how long the rest will take; it is removed at the end. Elsewhere a line is written every
    half minute. Nothing is said where the level of the logger ``domainclip`` is above warnings.

    Args:
        total: Of what is counted; None where the length is not known.
        what: What is being done.
        done: How much of it is behind already.
    """

    def __init__(self, total: int | None, what: str, done: int = 0) -> None:
        self.total, self.what, self.done, self.note = total, what, done, ""
        self.began = 0.0
        self.pace: Pace | None = None
        self.thread = 0
        self._parent: Progress | None = None

    def __enter__(self) -> Self:
        self.thread = threading.get_ident()
        self._parent = _line.begin(self)
        return self

    def at(self, done: int, note: str = "") -> None:
        """Note how far it is.

        Args:
            done: Of ``total``.
            note: Said after it, such as the newest loss.
        """
        self.done, self.note = done, note
        if self._parent is not None:
            self._parent._of_part(self)

    def _of_part(self, part: Progress, ended: bool = False) -> None:
        """Work within this has got on, or has ended."""
        if self._parent is not None:
            self._parent._of_part(part, ended)

    def __exit__(self, *_: object) -> None:
        _line.end(self)
        if self._parent is not None:
            self._parent._of_part(self, ended=True)
            self._parent = None

    def text(self, seconds: float, bar: Callable[[float], str] | None = None) -> str:
        """What is said of it.

        Args:
            seconds: Since it began.
            bar: Draws a fraction in [0, 1].

        Returns:
            A line without its end.
        """
        if not self.total or self.pace is None:
            return f"{self.what}: {duration(seconds)}{self.note and ', '}{self.note}"
        left = self.pace.seconds_left()
        rest = f"{duration(seconds)} so far" if left is None else f"{duration(left)} left"
        drawn = f"{bar(min(1.0, self.done / self.total))} " if bar is not None else ""
        return f"{self.what}: {drawn}{self.done:,} of {self.total:,}{self.note and ', '}{self.note} ({rest})"


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
            progress.at(min(done * each, total))
            yield item


@contextmanager
def nothing_said() -> Iterator[None]:
    """Say nothing of any work while the block runs: it waits for others, or they show themselves how far it is.

    Yields:
        Nothing.
    """
    _line.hush(1)
    try:
        yield
    finally:
        _line.hush(-1)


class ProgressLine:
    """The line, and the thread that draws it while there is work. There is one in a process.

    Args:
        clock: Gives seconds.
        threaded: Whether a thread calls ``tick``; otherwise whoever has made the line does.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, threaded: bool = True) -> None:
        self.clock, self.threaded = clock, threaded
        self.lock = threading.RLock()
        self._works: list[Progress] = []
        self._hushed = 0
        self._due = self._drawn = self._ended = -IN_FILE_SECONDS
        self._text = ""  # what stands on the terminal
        self._guards: tuple[_Guard, ...] = ()
        self._busy = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, work: Progress) -> Progress | None:
        """Work begins.

        Args:
            work: What it is.

        Returns:
            The work of the same thread that it is part of.
        """
        with self.lock:
            now = self.clock()
            work.began, work.pace = now, Pace(work.total, work.done, self.clock) if work.total else None
            parent = next((each for each in reversed(self._works) if each.thread == work.thread), None)
            self._works.append(work)
            if len(self._works) == 1:
                self._wake(now)
        return parent

    def _wake(self, now: float) -> None:
        if _on_terminal():
            self._due = now + FIRST_SECONDS
        elif now - self._ended > FIRST_SECONDS:  # one piece of work after the other is one long piece
            self._due = now + IN_FILE_SECONDS
        self._busy.set()
        if self.threaded and self._thread is None:
            self._thread = threading.Thread(target=self._draw_again_and_again, name="progress line", daemon=True)
            self._thread.start()

    def end(self, work: Progress) -> None:
        """Work is over.

        Args:
            work: Which.
        """
        with self.lock:
            if work in self._works:  # with what is left of work within it that was broken off
                at = self._works.index(work)
                self._works[at:] = [each for each in self._works[at + 1 :] if each.thread != work.thread]
            if not self._works:
                self._ended = self.clock()
                self._busy.clear()
                self.erase()
                self._unguard()

    def hush(self, change: int) -> None:
        """Say nothing, or something again.

        Args:
            change: 1 or −1.
        """
        with self.lock:
            self._hushed += change
            if self._hushed:
                self.erase()
                self._unguard()

    def tick(self) -> None:
        """Draw the line where it is time to."""
        with self.lock:
            now = self.clock()
            for work in self._works:
                if work.pace is not None and work.done != work.pace.done:
                    work.pace.observe(work.done)
            if not self._works or self._hushed or now < self._due or sys.stderr is None:
                return
            if not logging.getLogger(__name__).isEnabledFor(logging.WARNING):
                return
            with suppress(OSError, ValueError):  # nobody reads it any more
                if _on_terminal():
                    self._draw(now)
                else:
                    self._due = now + IN_FILE_SECONDS
                    sys.stderr.write(f"{self._line_of(now)}\n")
                    sys.stderr.flush()

    def _draw(self, now: float) -> None:
        if not self._guards:
            self._guards = tuple(_Guard(self, name) for name in ("stdout", "stderr") if _on_terminal(name))
        if any(guard.is_within_a_line(now) for guard in self._guards):
            return
        glyphs = "━─" if _can_write("━─") else "#-"

        def bar(fraction: float) -> str:
            full = round(fraction * _BAR)
            return glyphs[0] * full + glyphs[1] * (_BAR - full)

        text = self._line_of(now, bar)[: shutil.get_terminal_size().columns - 1]
        if text != self._text or now - self._drawn >= STILL_SECONDS:
            self._write(f"\r{text}\x1b[K")
            self._text, self._drawn = text, now

    def _line_of(self, now: float, bar: Callable[[float], str] | None = None) -> str:
        outer = next((work for work in self._works if work.total), self._works[0])
        within = self._works[self._works.index(outer) + 1 :]
        inner = next((work for work in reversed(within) if now - work.began >= FIRST_SECONDS), outer)
        if outer is inner or not outer.total:
            return inner.text(now - inner.began, bar)
        return f"{outer.text(now - outer.began, bar)} · {inner.text(now - inner.began)}"

    def erase(self) -> None:
        """Take the line away: something else is to stand there."""
        with self.lock:
            if self._text:
                self._text = ""
                with suppress(OSError, ValueError):
                    self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        stream = sys.stderr.stream if isinstance(sys.stderr, _Guard) else sys.stderr
        stream.write(text)
        stream.flush()

    def _unguard(self) -> None:
        for guard in self._guards:
            guard.remove()
        self._guards = ()

    def _draw_again_and_again(self) -> None:
        while True:
            self._busy.wait()
            self.tick()
            time.sleep(ON_TERMINAL_SECONDS)

    def forked(self) -> None:
        """This process was forked from the one that had the line, which goes on to say what is under way there."""
        self.lock, self._thread = threading.RLock(), None
        self._hushed += bool(self._works)
        self._text, self._works, self._busy = "", [], threading.Event()
        self._unguard()


class _Guard:
    """A standard stream on the terminal that has the line: what is written to it takes the line away first."""

    def __init__(self, line: ProgressLine, name: str) -> None:
        self.line, self.name, self.stream = line, name, getattr(sys, name)
        self._since: float | None = None  # of text that is no whole line yet
        setattr(sys, name, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self.line.lock:
            self.line.erase()
            if text:
                self._since = None if text.endswith("\n") else self.line.clock()
            return self.stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def is_within_a_line(self, now: float) -> bool:
        """Whether somebody is in the midst of a line; one that has stood for a while is ended."""
        if self._since is not None and now - self._since >= FIRST_SECONDS:
            self.write("\n")
        return self._since is not None

    def remove(self) -> None:
        if getattr(sys, self.name) is self:
            setattr(sys, self.name, self.stream)


def _on_terminal(name: str = "stderr") -> bool:
    stream: TextIO | None = getattr(sys, name)
    if "ipykernel" in sys.modules:  # whose streams say that they are terminals
        return False
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # it is closed
        return False


def _can_write(text: str) -> bool:
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


_line = ProgressLine()
if hasattr(os, "register_at_fork"):  # no process is forked in the midst of a line
    os.register_at_fork(
        before=lambda: _line.lock.acquire(),
        after_in_parent=lambda: _line.lock.release(),
        after_in_child=lambda: _line.forked(),
    )
