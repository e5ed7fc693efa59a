"""What the loop shares with the terminal it runs in: a progress bar, and the signals that end it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class StopSignals:
    """Remembers the first SIGINT or SIGTERM in ``received``, so that the step can be finished and saved; a second
    one stops at once (``KeyboardInterrupt``)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.received: int | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Take the signals over while the block runs. Python allows that in the main thread only: elsewhere the
        caller keeps them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: Any) -> None:
            if self.received:
                raise KeyboardInterrupt
            self.received = number
            self.console.print(f"{signal.Signals(number).name}: finishing this step, then saving …")

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def progress_bar(console: Console, total: int, done: int) -> Iterator[Callable[[float], None]]:
    """A bar over ``total`` steps, of which ``done`` are behind; yields a function that takes the newest loss."""
    progress = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = progress.add_task("training", total=total, completed=done, loss=float("nan"))
    with progress:
        yield lambda loss: progress.update(task, advance=1, loss=loss)
