"""What a training says of itself to Prometheus: a closed set of series, whatever happens in the run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from domainclip.events import (
    Event,
    ImageSkipped,
    InitialValidated,
    Milestone,
    Noted,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    RunEnded,
    RunStarted,
    StepLogged,
    Validated,
    Warned,
)
from domainclip.pace import Pace

PREFIX = "domainclip_training_"
OTHER = "other"
"""Stands for every value of a label that is not known here."""
STATES = ("running", "finished", "interrupted", "failed")
PHASES = (
    *("evaluation_before", "probe_first", "training", "validation", "hard_negatives", "probe_last"),
    *("evaluation_after", OTHER),
)
PARTS = ("data", "towers", "loss", "optimizer", "step")
MILESTONES = 50
"""Names of milestones that have a series of their own; those of a plugin could be any number."""


GAUGES = {
    "step": "Optimizer steps that are behind.",
    "total_steps": "Optimizer steps in all.",
    "loss": "The newest training loss.",
    "validation_value": "The primary metric at the newest validation.",
    "validation_best": "The best value of the primary metric so far.",
    "zero_shot_value": "The primary metric of the initial weights.",
    "images_per_second": "Over all training steps so far.",
    "seconds_per_step": "Of the last steps, without validations.",
    "learning_rate": "Of the first parameter group.",
    "temperature": "What similarities are divided by.",
    "gradient_norm": "Before it is clipped.",
    "seconds_left": "Estimated seconds to the last step.",
    "last_step_timestamp_seconds": "When the last step ended, in seconds since 1970.",
    "diverged": "1 where the loss, a gradient or a weight is no number any more, which ends the run.",
}
COUNTERS = {
    "skipped_images": "Images that cannot be read.",
    "out_of_memory": "Steps that were repeated because memory had run out.",
    "warnings": "Warnings of the run.",
}


class TrainingMetrics:
    """A listener that remembers the newest figures, and a collector that Prometheus's client asks for them. The loop
    sets plain attributes; whoever scrapes does the work.

    Args:
        folder: Of the run: its name is a label, and its ``memory.json`` has what was predicted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = "running"
        self.diverged = False
        self._values: dict[str, float] = {}
        self._primary = ""
        self._phases: list[str] = []
        self._seconds: dict[str, float] = {}
        self._memory: dict[str, float] = {}
        self._milestones: dict[tuple[str, str], int] = {}
        self._counts = {"skipped_images": 0, "out_of_memory": 0, "warnings": 0}
        self._last_step: float | None = None
        self._pace: Pace | None = None

    def __call__(self, event: Event) -> None:
        """Take an event.

        Args:
            event: Any.
        """
        if isinstance(event, PhaseProgress):
            if event.name == "training":
                self._stepped(event)
        elif isinstance(event, StepLogged):
            self._logged(event)
        elif isinstance(event, Validated | InitialValidated):
            self._validated(event)
        elif isinstance(event, PhaseStarted):
            self._phases.append(event.name)
            if event.name == "training":
                self._pace = Pace(event.total, event.done) if event.total else None
        elif isinstance(event, PhaseFinished):
            self._phases = [name for name in self._phases if name != event.name]
        elif isinstance(event, Milestone):
            labels = event.name, event.level
            if labels not in self._milestones and len(self._milestones) >= MILESTONES:
                labels = OTHER, event.level
            self._milestones[labels] = self._milestones.get(labels, 0) + 1
        elif isinstance(event, RunStarted):
            self._values |= {"step": event.step, "total_steps": event.total_steps}
        elif isinstance(event, RunEnded):
            self.state, self.diverged = event.outcome, event.error == "TrainingDivergedError"
        else:
            self._count(event)

    def _stepped(self, event: PhaseProgress) -> None:
        now = time.time()
        if self._pace is not None:
            self._pace.observe(event.done)
        if self._last_step is not None and self._phases[-1:] == ["training"]:
            took, before = now - self._last_step, self._values.get("seconds_per_step")
            self._values["seconds_per_step"] = took if before is None else 0.9 * before + 0.1 * took
        self._last_step = now
        self._values["step"] = event.done
        if event.loss is not None:
            self._values["loss"] = event.loss

    def _logged(self, event: StepLogged) -> None:
        self._values |= {
            "step": event.step,
            "total_steps": event.total_steps,
            "loss": event.metrics["loss"],
            "gradient_norm": event.gradient_norm,
            "temperature": event.temperature,
            "learning_rate": event.learning_rates[0],
        }
        if event.samples_per_second is not None:
            self._values["images_per_second"] = event.samples_per_second
        self._seconds = dict(event.seconds)
        self._memory = {"held": event.memory_mb * 2**20, "peak": event.peak_memory_mb * 2**20}

    def _validated(self, event: Validated | InitialValidated) -> None:
        self._primary = event.primary
        if isinstance(event, InitialValidated):
            self._values["zero_shot_value"] = event.value
        else:
            self._values |= {"validation_value": event.value, "validation_best": event.top}

    def _count(self, event: Event) -> None:
        if isinstance(event, ImageSkipped):
            self._counts["skipped_images"] += 1
        elif isinstance(event, Warned):
            self._counts["warnings"] += 1
        elif isinstance(event, Noted) and event.name == "out_of_memory":
            self._counts["out_of_memory"] += 1

    def collect(self) -> Iterator[Metric]:
        """What ``prometheus_client`` asks a collector for. In a thread of its own.

        Yields:
            One metric after the other; those without a value yet have no sample.
        """
        yield InfoMetricFamily(
            f"{PREFIX}run", "The run, and the metric that chooses its weights.", value=self._run_labels()
        )
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"{PREFIX}{name}", text)
            value = self._value(name)
            if value is not None:
                gauge.add_metric([], value)
            yield gauge
        yield _labelled("phase", "1 for the phase that is under way.", "phase", self._phase())
        yield _labelled("state", "1 for the state of the run.", "state", {s: float(s == self.state) for s in STATES})
        yield _labelled(
            "step_seconds",
            "Where the time of a step goes.",
            "part",
            {p: self._seconds[p] for p in PARTS if p in self._seconds},
        )
        yield _labelled("memory_bytes", "Memory of the training.", "kind", {**self._memory, **self._predicted()})
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"{PREFIX}{name}", text, value=self._counts[name])
        milestones = CounterMetricFamily(f"{PREFIX}milestones", "Milestones reached.", labels=["name", "level"])
        for labels, count in list(self._milestones.items()):
            milestones.add_metric(labels, count)
        yield milestones

    def _run_labels(self) -> dict[str, str]:
        return {"run": self.folder.resolve().name, "primary": self._primary}

    def _value(self, name: str) -> float | None:
        if name == "seconds_left":
            return self._pace.seconds_left() if self._pace is not None and self.state == "running" else None
        if name == "last_step_timestamp_seconds":
            return self._last_step
        if name == "diverged":
            return float(self.diverged)
        return self._values.get(name)

    def _phase(self) -> dict[str, float]:
        now = self._phases[-1] if self._phases else None
        now = now if now is None or now in PHASES else OTHER
        return {phase: float(phase == now) for phase in PHASES}

    def _predicted(self) -> dict[str, float]:
        try:
            content = json.loads((self.folder / "memory.json").read_bytes())
            return {"predicted": float(content["predicted_mb"]) * 2**20}
        except (OSError, ValueError, KeyError, TypeError):  # nothing was predicted, or not yet
            return {}


def _labelled(name: str, text: str, label: str, values: dict[str, float]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(f"{PREFIX}{name}", text, labels=[label])
    for each, value in values.items():
        gauge.add_metric([each], value)
    return gauge
