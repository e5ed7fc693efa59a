"""What a person is told of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from domainclip.events import Event, Level, Milestone, RunEnded, Warned
from domainclip.tracking.milestones.watch import sentence_of

LEVELS: tuple[Level, ...] = ("info", "warning", "error")


@dataclass(frozen=True)
class Message:
    """One thing that has happened.

    Attributes:
        number: Its place in the run's queue, from 1.
        key: The same for an event that comes again where a run is resumed: it is told once.
        level: How urgent it is.
        text: What has happened, in a line or a few.
        last: Whether the run has ended with it: it is told at once, and whatever the least level is.
    """

    number: int
    key: str
    level: Level
    text: str
    last: bool = False


@dataclass(frozen=True)
class Digest:
    """Messages that are sent as one.

    Attributes:
        run: The name of the run's folder.
        messages: At least one, in order.
    """

    run: str
    messages: tuple[Message, ...]

    @property
    def level(self) -> Level:
        """That of the most urgent message."""
        return max((message.level for message in self.messages), key=LEVELS.index)

    @property
    def title(self) -> str:
        """A line."""
        if self.messages[-1].last:
            return f"{self.run}: {self.messages[-1].text.split(':')[0]}"
        first, last = self.messages[0].number, self.messages[-1].number
        return f"{self.run}: " + (self.level if first == last else f"{len(self.messages)} messages")

    @property
    def body(self) -> str:
        """A line for each message, each with its number, by which a receiver knows one that came twice."""
        return "\n".join(f"{each.number}. {each.level}: {each.text}" for each in self.messages)


def message_of(event: Event, number: int, skipped: int = 0) -> Message | None:
    """What there is to tell of an event.

    Args:
        event: Any event.
        number: Of the message.
        skipped: Images that were skipped so far, for the end of the run.

    Returns:
        The message; None for an event that nobody need be told of.
    """
    if isinstance(event, Milestone):
        return Message(number, f"{event.name} {event.step}", event.level, sentence_of(event))
    if isinstance(event, Warned):
        return Message(number, f"warned {event.step} {event.text}", "warning", event.text)
    if isinstance(event, RunEnded):
        level: Level = "error" if event.outcome == "failed" else "info"
        images = f" {skipped} images could not be read and were skipped." if skipped else ""
        return Message(number, f"ended {number}", level, f"{event.outcome}: {event.text}{images}", last=True)
    return None


def wanted(messages: Sequence[Message], level: Level) -> list[Message]:
    """Those that are urgent enough.

    Args:
        messages: In order.
        level: The least urgent that is told.

    Returns:
        In order; the end of a run is always among them.
    """
    return [each for each in messages if each.last or LEVELS.index(each.level) >= LEVELS.index(level)]
