"""Rules over validations: what the training has gained."""

from __future__ import annotations

from domainclip.events import Event, InitialValidated, Noted, Validated
from domainclip.tracking.milestones.rule import Found, InARow, Rule, RunFacts

PLATEAU = 5
"""Validations in a row without a gain."""


def _gain(event: Validated, over: float) -> float:
    """By how much a validation is better, in the units of its primary metric."""
    return event.value - over if event.greater_is_better else over - event.value


class BetterThanZeroShot(Rule):
    """Training has paid."""

    name = "better_than_zero_shot"
    rule = "A validation is better than that of the initial weights by more than the larger of their standard errors."

    def __init__(self) -> None:
        self.initial: float | None = None
        self.error = 0.0

    def look(self, event: Event, facts: RunFacts) -> Found | None:
        """See ``Rule.look``."""
        if isinstance(event, InitialValidated):
            self.initial, self.error = event.value, event.standard_error
        if not isinstance(event, Validated) or self.initial is None:
            return None
        error = max(self.error, event.standard_error)
        if _gain(event, self.initial) <= error:
            return None
        return Found(
            f"{event.primary} is {event.value:.4f}, better than the {self.initial:.4f} of the initial model",
            {"value": event.value, "initial": self.initial, "standard_error": error},
        )


class BeatsLinearProbe(Rule):
    """The towers have learned something that the projections alone had not."""

    name = "beats_linear_probe"
    rule = "A validation is better than that of the linear probe, at step 0, by more than one standard error."

    def __init__(self) -> None:
        self.probe: float | None = None

    def look(self, event: Event, facts: RunFacts) -> Found | None:
        """See ``Rule.look``."""
        if not isinstance(event, Validated):
            return None
        if not event.step:
            self.probe = event.value
            return None
        if self.probe is None or _gain(event, self.probe) <= event.standard_error:
            return None
        return Found(
            f"{event.primary} is {event.value:.4f}, better than the {self.probe:.4f} of the linear probe",
            {"value": event.value, "probe": self.probe, "standard_error": event.standard_error},
        )


class NewBest(Rule):
    """A new best, where it is more than chance."""

    name = "new_best"
    rule = "A validation is better than the last best that was announced by more than one standard error."
    again = True

    def __init__(self) -> None:
        self.best: float | None = None

    def look(self, event: Event, facts: RunFacts) -> Found | None:
        """See ``Rule.look``."""
        if not isinstance(event, Validated):
            return None
        before = self.best
        if before is None:
            self.best = event.value
        if before is None or _gain(event, before) <= event.standard_error:
            return None
        self.best = event.value
        return Found(
            f"{event.primary} is {event.value:.4f}, a new best after {before:.4f}",
            {"value": event.value, "before": before, "standard_error": event.standard_error},
        )


class Plateau(Rule):
    """The validation gains no more."""

    name = "plateau"
    rule = f"{PLATEAU} validations in a row have gained less than one standard error on the best before them."
    advice = "It may be as good as it gets: early_stopping_patience ends such a run, a lower learning_rate may go on"

    def __init__(self) -> None:
        self.best: float | None = None
        self.without_gain = 0

    def look(self, event: Event, facts: RunFacts) -> Found | None:
        """See ``Rule.look``."""
        if not isinstance(event, Validated):
            return None
        if self.best is None or _gain(event, self.best) > event.standard_error:
            self.best, self.without_gain = event.value, 0
            return None
        self.without_gain += 1
        if self.without_gain < PLATEAU:
            return None
        return Found(
            f"{event.primary} has not gained on {self.best:.4f} for {self.without_gain} validations",
            {"best": self.best, "value": event.value, "validations": self.without_gain},
        )


class Forgetting(InARow):
    """The general knowledge falls below the limit."""

    name = "forgetting"
    level = "warning"
    patience = 2
    rule = "The mean score of the reference sets has lost more than max_forgetting, at two validations in a row."
    advice = (
        "Raise rehearsal_strength or l2sp_strength, or lower learning_rate; wise_ft mixes the initial weights in "
        "again at the end"
    )

    def __init__(self) -> None:
        super().__init__()
        self.initial: float | None = None

    def look(self, event: Event, facts: RunFacts) -> Found | None:
        """See ``Rule.look``."""
        if isinstance(event, Noted) and event.name == "references" and not event.step:
            initial = event.values.get("val_reference_mean")
            self.initial = None if initial is None else float(initial)
        if not isinstance(event, Validated) or self.initial is None or "reference_mean" not in event.metrics:
            return None
        now = event.metrics["reference_mean"]
        if self.initial - now <= facts.max_forgetting:
            return self.counted(None)
        text = (
            f"the reference sets fell from {self.initial:.4f} to {now:.4f}, more than max_forgetting "
            f"({facts.max_forgetting:g}) allows"
        )
        evidence = {"reference_mean": now, "initial": self.initial, "max_forgetting": facts.max_forgetting}
        return self.counted(Found(text, evidence))
