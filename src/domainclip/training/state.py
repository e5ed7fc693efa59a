"""What the parts of a training share, what the loop remembers between steps, and what it hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict

from domainclip.config import EvaluationSettings
from domainclip.events import Emitter, Warned
from domainclip.training.distributed import OneProcess, ProcessGroup


class Stateful(Protocol):
    """A part whose state the next step depends on. Its state is plain values and tensors, or None for nothing yet."""

    def state_dict(self) -> Any:
        """Give what the next step depends on.

        Returns:
            Plain values and tensors, or None for nothing yet.
        """

    def load_state_dict(self, state: Any, /) -> object:
        """Take over what ``state_dict`` gave.

        Args:
            state: What ``state_dict`` gave.

        Returns:
            Anything; it is not looked at.
        """


class Best(TypedDict):
    """The weights that are kept: the step they are of, and what they scored there."""

    step: int
    metric: str
    value: float
    all: dict[str, float]


class ProbeOutcome(TypedDict, total=False):
    """What training the projections alone came to."""

    skipped: str  # why nothing was done; the rest is missing then
    said: str  # what came of it, in words
    rows: int  # of training, that it was fitted to
    effort: dict[str, Any]  # steps, learning_rate, balanced
    folds: int  # of the cross-validation that chose these; 0 where nothing was to be chosen
    surprise: float | None  # nats an answer in the rows that the folds held out
    accuracy: float | None  # the fraction of right answers there
    confidence: float  # what its logits are multiplied by to be true of validation rows; 1 within the error
    seconds: float
    validation: float  # the primary metric of the validation that followed
    fraction: float  # of the way from the initial towers to the trained ones, that was chosen after the last step
    fitted_rows: int  # of training and validation, that the result's projections are fitted to
    kept: bool  # of the projections after the last step: whether they are in the result


@dataclass
class RunState:
    """Where the run is; saved and restored whole."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: Best | None = None  # the checkpoint that is kept
    best_files: dict[str, str] | None = None  # its files' SHA-256 by name
    top: float | None = None  # the best value seen, at whichever step
    without_gain: int = 0
    probe_first: ProbeOutcome | None = None
    probe_surprise: list[float] | None = None  # of each validation answer, by the probe before the first step
    probe_last: ProbeOutcome | None = None
    steps_skipped: int = 0  # batches with fewer than two readable images
    loss_sum: float = 0.0
    loss_count: int = 0
    last_loss: float = float("nan")
    warnings: list[str] = field(default_factory=list)
    skipped_images: dict[str, str] = field(default_factory=dict)
    # Totals of the run, over its resumptions. What was done between the last checkpoint and a kill does not count.
    elapsed: float = 0.0  # seconds, validations included
    step_seconds: float = 0.0  # of the training steps alone
    rows_seen: int = 0

    def finish_step(self, rows: int, batches: int) -> None:
        """Count a step.

        Args:
            rows: Pairs of its contrastive batch.
            batches: Batches of the epoch it belongs to.
        """
        self.step += 1
        self.batch += 1
        self.rows_seen += rows
        if self.batch == batches:
            self.epoch, self.batch = self.epoch + 1, 0

    def stops_early(self, evaluation: EvaluationSettings) -> bool:
        """Whether early stopping is due. Also true for a run resumed after it has stopped early.

        Args:
            evaluation: Says how many validations without a gain end the run.

        Returns:
            True where validations have gone by without a gain for as long as the settings allow.
        """
        return 0 < (evaluation.early_stopping_patience or 0) <= self.without_gain

    def parts(self, *names: str) -> dict[str, Any]:
        """What one process tells the others.

        Args:
            names: Of attributes.

        Returns:
            Their values by name.
        """
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it.

        Returns:
            All attributes by name.
        """
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over attributes, in place: the parts of a training hold on to this object.

        Args:
            state: Attributes by name; the others stay.
        """
        vars(self).update(state)


@dataclass
class TrainContext:
    """What all parts of a training share.

    Attributes:
        folder: Of the run.
        state: Where the run is.
        processes: Those that train together. The first alone validates and writes.
        emitter: Takes the events. Only the first process has listeners.
        listeners: By name those whose state a checkpoint keeps, too: a damaged file is then written anew.
    """

    folder: Path
    state: RunState = field(default_factory=RunState)
    processes: ProcessGroup | OneProcess = field(default_factory=OneProcess)
    emitter: Emitter = field(default_factory=Emitter)
    listeners: Mapping[str, Stateful] = field(default_factory=dict)

    def warn(self, text: str) -> None:
        """Tell the listeners, and have the report say it.

        Args:
            text: Whole sentences.
        """
        self.state.warnings.append(text)
        self.emitter.emit(Warned(text=text, step=self.state.step))


@dataclass
class TrainingResult:
    """What a training came to. Times and counts are the run's, over all its resumptions."""

    steps: int
    epochs: float
    train_loss: float
    training_time: float  # seconds, evaluation included
    earlier_time: float  # of these, before the last start
    samples_per_second: float  # training steps alone
    peak_memory_mb: float
    best: Best | None
    stopped_early: bool
    warnings: list[str]
    skipped_images: dict[str, str]
    resumed_from: int
    final_loss: float
    probe_first: ProbeOutcome | None
    """What training the projections before the first step came to; None where it was not asked for."""
    probe_last: ProbeOutcome | None
    """The same of the projections after the last step."""
    memory: dict[str, Any]
    """What ``memory.json`` holds: predicted and measured (see ``RunMemory``)."""
