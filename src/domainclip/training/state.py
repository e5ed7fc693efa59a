"""What the loop is told by a validation, remembers between steps, and hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from domainclip.config import TrainingSettings


@dataclass(frozen=True)
class Validation:
    """What an evaluator says of the present weights; ``primary`` chooses the best checkpoint."""

    metrics: dict[str, float]
    primary: str
    greater_is_better: bool = True
    standard_error: float = 0.0
    """Of the primary metric; two values nearer than this are not told apart."""

    @property
    def value(self) -> float:
        return self.metrics[self.primary]


@dataclass
class TrainingResult:
    steps: int
    epochs: float
    train_loss: float
    training_time: float  # seconds in this process, evaluation included
    samples_per_second: float  # training steps alone
    peak_memory_mb: float
    best: dict[str, Any] | None
    stopped_early: bool
    warnings: list[str]
    skipped_images: dict[str, str]
    resumed_from: int
    final_loss: float
    probe_first: dict[str, Any] | None
    """What training the projections before the first step came to; None where it was not asked for."""
    probe_last: dict[str, Any] | None
    """The same of the projections after the last step, with ``validation`` and ``kept``."""
    memory: dict[str, Any]
    """What ``memory.json`` holds: predicted and measured (see ``RunMemory``)."""


@dataclass
class RunState:
    """Where the run is; saved and restored whole."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: dict[str, Any] | None = None  # the checkpoint that is kept
    top: float | None = None  # the best value seen, at whichever step
    without_gain: int = 0
    previous: float | None = None  # the value of the last validation
    confirmed: float | None = None  # as top, of the values that count (see ``validate_weights``)
    probe_first: dict[str, Any] | None = None
    """What training the projections before the first step came to, with ``validation``: the primary metric of its
    validation."""
    probe_last: dict[str, Any] | None = None
    steps_skipped: int = 0  # batches with fewer than two readable images
    loss_sum: float = 0.0
    loss_count: int = 0
    last_loss: float = float("nan")
    warnings: list[str] = field(default_factory=list)
    skipped_images: dict[str, str] = field(default_factory=dict)

    def stops_early(self, settings: TrainingSettings) -> bool:
        """Whether early stopping is due. Also true for a run resumed after it has stopped early.

        Towers that are kept in place of the probe have their whole schedule: at its end they gain what a few hundred
        validation rows cannot show (docs/log.md).
        """
        only_probe = self.probe_first is not None and self.best is not None and not self.best["step"]
        patience = (settings.early_stopping_patience, settings.probe_patience if only_probe else None)
        return any(0 < most <= self.without_gain for most in patience if most is not None)


def summary_of(result: TrainingResult, model_path: Path) -> dict[str, Any]:
    """The result in plain values, as ``fine_tune`` hands it to its caller."""
    return {
        "train_loss": result.train_loss,
        "final_loss": result.final_loss,
        "training_time": result.training_time,
        "steps": result.steps,
        "epochs": result.epochs,
        "samples_per_second": result.samples_per_second,
        "peak_memory_mb": result.peak_memory_mb,
        "best": result.best,
        "stopped_early": result.stopped_early,
        "warnings": result.warnings,
        "skipped_images": result.skipped_images,
        "resumed_from": result.resumed_from,
        "model_path": str(model_path),
        "memory": result.memory,
        "probe_first": result.probe_first,
        "probe_last": result.probe_last,
    }
