"""What a user sees of a training on the terminal."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from domainclip.events import (
    Event,
    ImageSkipped,
    Milestone,
    Noted,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    Validated,
    Warned,
)
from domainclip.tracking.milestones.watch import sentence_of

log = logging.getLogger(__name__)


class ConsoleListener:
    """A listener that prints validations and milestones, logs warnings, and shows a progress bar on a terminal.

    Args:
        console: Where it prints. Warnings go through ``logging``.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: tuple[Progress, TaskID] | None = None

    def __call__(self, event: Event) -> None:
        """Show what the event has for a person, if anything.

        Args:
            event: Any event.
        """
        if isinstance(event, PhaseProgress):
            if self._bar is not None:
                progress, task = self._bar
                progress.update(task, completed=event.done, loss=event.loss)
        elif isinstance(event, PhaseStarted):
            if event.name == "training" and self.console.is_terminal:
                self._show_bar(event)
        elif isinstance(event, PhaseFinished):
            if event.name == "training" and self._bar is not None:
                self._bar[0].stop()
                self._bar = None
        elif isinstance(event, Validated):
            self.console.print(
                f"  step {event.step}: validation {event.primary} {event.value:.4f} "
                f"(best {event.top:.4f}{', kept' if event.kept else ''})"
            )
        elif isinstance(event, Noted):
            if event.text:
                self.console.print(event.text, highlight=False, markup=False)
        elif isinstance(event, Milestone):
            if event.level == "info":
                self.console.print(f"  {sentence_of(event)}", highlight=False, markup=False)
            else:
                log.warning("%s", sentence_of(event))
        elif isinstance(event, Warned):
            log.warning("%s", event.text)
        elif isinstance(event, ImageSkipped):
            log.warning("Skipped: %s", event.reason)

    def _show_bar(self, event: PhaseStarted) -> None:
        progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        task = progress.add_task("training", total=event.total, completed=event.done, loss=float("nan"))
        progress.start()
        self._bar = progress, task
