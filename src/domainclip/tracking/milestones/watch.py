"""The listener that says when a milestone is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from domainclip.events import Event, Milestone, PhaseProgress, RunStarted, StepLogged, Validated
from domainclip.tracking.milestones.health_rules import (
    Collapse,
    DataBound,
    DiskShort,
    EtaMoved,
    LossAtChance,
    TemperatureClamped,
    TemperatureLost,
    Throttled,
)
from domainclip.tracking.milestones.progress_rules import (
    BeatsLinearProbe,
    BetterThanZeroShot,
    Forgetting,
    NewBest,
    Plateau,
)
from domainclip.tracking.milestones.rule import Rule, RunFacts

RULES: tuple[type[Rule], ...] = (
    BetterThanZeroShot,
    BeatsLinearProbe,
    NewBest,
    Plateau,
    Collapse,
    LossAtChance,
    TemperatureClamped,
    TemperatureLost,
    DataBound,
    Forgetting,
    DiskShort,
    Throttled,
    EtaMoved,
)


class MilestoneWatch:
    """A listener that looks at each event by all rules and emits a ``Milestone`` where one is reached; a part of a
    checkpoint, so that none is announced twice or lost where a run goes on.

    Args:
        facts: Of the run.
        emit: Takes the milestones.
    """

    def __init__(self, facts: RunFacts, emit: Callable[[Event], None]) -> None:
        self.facts, self.emit = facts, emit
        self.reached: list[Milestone] = []
        self._rules = [rule() for rule in RULES]
        self._step = 0

    @property
    def warnings(self) -> list[str]:
        """The milestones that ask for something to be done, in sentences."""
        return [sentence_of(each) for each in self.reached if each.level != "info"]

    def __call__(self, event: Event) -> None:
        """Look at an event.

        Args:
            event: Any event.
        """
        if isinstance(event, RunStarted | StepLogged | Validated):
            self._step = event.step
        elif isinstance(event, PhaseProgress) and event.name == "training":
            self._step = event.done
        reached = {each.name for each in self.reached}
        for rule in self._rules:
            if (rule.again or rule.name not in reached) and (found := rule.look(event, self.facts)) is not None:
                milestone = Milestone(
                    name=rule.name,
                    step=self._step,
                    level=rule.level,
                    text=found.text,
                    rule=rule.rule,
                    evidence=found.evidence,
                    advice=rule.advice,
                )
                self.reached.append(milestone)
                self.emit(milestone)

    def state_dict(self) -> dict[str, Any]:
        """What the next event is judged by.

        Returns:
            Plain values.
        """
        return {
            "rules": {rule.name: rule.state_dict() for rule in self._rules},
            "reached": [asdict(each) for each in self.reached],
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint.

        Args:
            state: From ``state_dict``; None: from a training that had no such listener.
        """
        if state is None:
            return
        self.reached = [Milestone(**each) for each in state["reached"]]
        for rule in self._rules:
            rule.load_state_dict(state["rules"].get(rule.name, {}))


def sentence_of(milestone: Milestone) -> str:
    """A milestone as a line for a person.

    Args:
        milestone: Any.

    Returns:
        Its step, what has happened, and what to do about it.
    """
    advice = f". {milestone.advice}" if milestone.advice else ""
    return f"step {milestone.step}: {milestone.text}{advice}"
