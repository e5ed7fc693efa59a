"""What a milestone's rule is, and what rules know of a run besides its events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from domainclip.events import Event, Level, Number

PATIENCE = 3
"""Observations in a row before a warning: one bad batch is no trend."""


@dataclass(frozen=True)
class RunFacts:
    """What the rules know of a run.

    Attributes:
        folder: Where checkpoints are written.
        warmup_steps: During which nothing is said of a loss or of embeddings.
        largest_scale: The logit scale (the factor itself) at which the model is clamped; None where it is not.
        scale_trained: Whether the scale learns. A fixed one is what the user asked for, and no sign of anything.
        max_forgetting: What the reference sets may lose, in the units of their scores.
    """

    folder: Path
    warmup_steps: int = 0
    largest_scale: float | None = None
    scale_trained: bool = True
    max_forgetting: float = 0.03


@dataclass(frozen=True)
class Found:
    """That a rule holds: ``text`` says what has happened, ``evidence`` has the figures it was told by."""

    text: str
    evidence: Mapping[str, Number]


class Rule:
    """A rule looks at each event and says when its milestone is reached. Its attributes are its whole state.

    Attributes:
        name: Of the milestone.
        level: How urgent it is.
        rule: When it is reached, in a sentence.
        advice: What to do about it; empty where nothing is to be done.
        again: Whether it may be reached more than once.
    """

    name: ClassVar[str]
    level: ClassVar[Level] = "info"
    rule: ClassVar[str]
    advice: ClassVar[str] = ""
    again: ClassVar[bool] = False

    def look(self, event: Event, facts: RunFacts) -> Found | None:
        """Look at an event.

        Args:
            event: Any event.
            facts: Of the run.

        Returns:
            What has happened, where the milestone is reached.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What the next event is judged by.

        Returns:
            Plain values by name.
        """
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: From ``state_dict``.
        """
        self.__dict__.update(state)


class InARow(Rule):
    """A rule that holds once something was seen several times in a row."""

    patience: ClassVar[int] = PATIENCE

    def __init__(self) -> None:
        self.seen = 0

    def counted(self, found: Found | None) -> Found | None:
        """Count an observation.

        Args:
            found: What was seen; None for nothing, which begins the count anew.

        Returns:
            The same once it has been seen often enough in a row, and at each observation from then on.
        """
        self.seen = self.seen + 1 if found is not None else 0
        return found if self.seen >= self.patience else None
