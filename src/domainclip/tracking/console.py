"""What a user sees of a training on the terminal."""

from __future__ import annotations

import logging

from rich.console import Console

from domainclip.events import Event, ImageSkipped, Milestone, Noted, Validated, Warned
from domainclip.tracking.milestones.watch import sentence_of

log = logging.getLogger(__name__)


class ConsoleListener:
    """A listener that prints validations and milestones, and logs warnings. How far the run is shows the line that all
    work has (``domainclip.waiting``).

    Args:
        console: Where it prints. Warnings go through ``logging``.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, event: Event) -> None:
        """Show what the event has for a person, if anything.

        Args:
            event: Any event.
        """
        if isinstance(event, Validated):
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
