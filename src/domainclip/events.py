"""What a run reports while it goes on, as typed events, and how they reach those who listen.

The training loop emits events and knows nobody who receives them. Files, the console, pages, notifications, experiment
trackers and the pruning of a search are listeners: callables that take an event. No listener can end a run by failing.
"""

from __future__ import annotations

import inspect
import logging
import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

from domainclip.errors import InputTypeError
from domainclip.waiting import FIRST_SECONDS, Progress

log = logging.getLogger(__name__)

SLOW_SECONDS = 5.0
"""A listener that takes longer than this for one event holds the training up, and the user is told."""
PART_SECONDS = 0.5
"""Between two events of how far work within a phase is."""

Number = float | int | bool | None
Level = Literal["info", "warning", "error"]
"""How urgent something is for the person whose run it is."""


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """The training begins, or goes on. Whatever was reported of steps after ``step`` is of a course given up."""

    folder: str
    step: int
    """Steps that are behind: 0, or those of the checkpoint it goes on from."""
    total_steps: int


@dataclass(frozen=True, kw_only=True)
class PhaseStarted:
    """A stretch of work begins: ``training``, ``validation``, ``probe_first``, ``probe_last``,
    ``hard_negatives``; and before and after all of them ``evaluation_before``, ``evaluation_after``, ``references``,
    ``calibration``, ``report``, ``alignment`` and ``error_analysis``. What takes longer than a moment within one of
    them is a phase of its own, whose name is a few words: ``Embedding images``, ``Fitting projections``."""

    name: str
    total: int | None = None
    """Its length in units of ``PhaseProgress.done``; None where nobody knows it."""
    done: int = 0


@dataclass(frozen=True, kw_only=True)
class PhaseProgress:
    """A phase has got so far. Sent after every training step, and now and then as other phases go on."""

    name: str
    done: int
    total: int
    loss: float | None = None
    """The newest loss that has been read; on an accelerator that is the last logged one."""


@dataclass(frozen=True, kw_only=True)
class PhaseFinished:
    """A phase is over, by whatever way it ended."""

    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StepLogged:
    """The figures of an optimizer step, every ``logging_steps`` steps and after the last."""

    step: int
    total_steps: int
    epoch: float
    batch_size: int
    """Pairs of the contrastive batch, over all processes."""
    resolution: int
    """Edge of the images of this step, in pixels."""
    metrics: Mapping[str, float]
    """``loss`` in the objective's units, its parts, and every other single number the objective has returned."""
    learning_rates: tuple[float, ...]
    """Of each parameter group."""
    gradient_norm: float
    """Before it is clipped."""
    logit_scale: float
    """The factor itself, not its logarithm: 1 / temperature."""
    embedding_spread: float
    """Root-mean-square distance of the unit image embeddings from their mean, in [0, 1]."""
    effective_rank: float
    """How many directions the batch's image embeddings take up, in [1, min(rows, dim)]; see ``metrics.uniformity``."""
    seconds: Mapping[str, float]
    """Of a step, the mean since the last logged one: ``data`` (waiting for the batch), ``towers``, ``loss``,
    ``optimizer``. On an accelerator, which works on by itself, ``data`` and ``step`` (all the rest)."""
    samples_per_second: float | None
    """Over all training steps of the run so far, those before a resumption included."""
    memory_mb: float
    """Most memory held since the last logged step, in MiB."""
    peak_memory_mb: float
    """Most memory this process has held so far, in MiB."""

    @property
    def temperature(self) -> float:
        """What similarities are divided by: 1 / ``logit_scale``; infinite where that is zero, as in a run that
        diverges."""
        return 1 / self.logit_scale if self.logit_scale else math.inf


@dataclass(frozen=True, kw_only=True)
class Similarities:
    """How similar validation images are to their own texts, and to the most similar wrong one: two histograms."""

    low: float
    high: float
    """The first bin's lower and the last one's upper edge, as cosines; all bins are equally wide."""
    positives: tuple[int, ...]
    """Images in each bin by the similarity to their own text (the most similar, where there are several)."""
    hardest_negatives: tuple[int, ...]
    """The same by the most similar text that is not theirs."""


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """How one class fared in a validation."""

    label: str
    images: int
    recall: float
    mistaken: tuple[tuple[str, str], ...] = ()
    """A few of its images that were taken for another class: path and that class."""


@dataclass(frozen=True, kw_only=True)
class ValidationDetails:
    """What a validation has found beside its figures."""

    similarities: Similarities | None = None
    classes: tuple[ClassFigures, ...] = ()
    """The worst first."""


@dataclass(frozen=True, kw_only=True)
class InitialValidated:
    """The initial weights, before any training, have been validated: what training has to be better than."""

    metrics: Mapping[str, float]
    primary: str
    value: float
    """Of the primary metric."""
    greater_is_better: bool
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class Validated:
    """The present weights have been validated. Step 0: the model that the probe has made before the first step."""

    step: int
    metrics: Mapping[str, float]
    primary: str
    """The metric that chooses the weights which are kept."""
    value: float
    """Of the primary metric."""
    greater_is_better: bool
    standard_error: float
    top: float
    """The best value so far, at whichever step."""
    kept: bool
    """Whether these weights are now the ones the run would end with."""
    details: ValidationDetails = ValidationDetails()


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """A whole checkpoint is on the disk: the run can go on from ``step``."""

    step: int
    path: str


@dataclass(frozen=True, kw_only=True)
class Noted:
    """Something that happens once: the probe is trained, a run goes on from a checkpoint, memory has been predicted;
    or again whenever it happens: a step did not fit into memory and is repeated (``out_of_memory``).

    ``text`` is the line a person reads, or empty; ``values`` are figures by the names they have in ``metrics.jsonl``.
    """

    name: str
    step: int
    text: str = ""
    values: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Milestone:
    """The run has come to a point that its owner wants to know of, be it good or bad."""

    name: str
    """``better_than_zero_shot``, ``plateau``, ``collapse``, …: one word for one rule."""
    step: int
    level: Level
    text: str
    """What has happened, in a sentence."""
    rule: str
    """When it is said to have happened, in a sentence."""
    evidence: Mapping[str, Number]
    """The figures that the rule has looked at, by name."""
    advice: str
    """What to do about it, in a sentence; empty where nothing is to be done."""


@dataclass(frozen=True, kw_only=True)
class Warned:
    """Something the user should know, in a sentence; it is in the report as well."""

    text: str
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class ImageSkipped:
    """A training image cannot be read; its row is left out from here on."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunFinished:
    """The training is over. Totals are the run's, over all its resumptions."""

    steps: int
    epochs: float
    train_loss: float
    """Mean over the steps whose loss was read."""
    final_loss: float
    training_time: float
    """Seconds, validations included."""
    samples_per_second: float
    """Over the training steps alone."""
    rows_seen: int
    peak_memory_mb: float
    stopped_early: bool
    best_step: int | None
    best_value: float | None


@dataclass(frozen=True, kw_only=True)
class RunEnded:
    """The last event: nothing more comes of this start of the run."""

    outcome: Literal["finished", "interrupted", "failed"]
    text: str
    """What it has come to, or why it has ended, in a few sentences."""
    report: str | None = None
    """The path of its report, where it has finished."""
    error: str = ""
    """The class of the exception that has ended it, such as ``TrainingDivergedError``; empty where it has finished."""


Event = (
    RunStarted
    | PhaseStarted
    | PhaseProgress
    | PhaseFinished
    | StepLogged
    | InitialValidated
    | Validated
    | CheckpointSaved
    | Noted
    | Milestone
    | Warned
    | ImageSkipped
    | RunFinished
    | RunEnded
)
Listener = Callable[[Event], object]
"""Called with every event, in the thread of the loop. What it returns is not looked at."""


class StopRun(Exception):
    """Raised by a listener to end the run: the one exception that passes through the emitter. Nothing more is saved."""


class Emitter:
    """Hands events to listeners, in the order in which these were added, from the thread of the loop alone.

    What a listener emits while it has an event follows once all have had that one: all hear the same in the same order.
    A listener that raises is switched off for the rest of the run, evaluations before and after the training included,
    with one warning. One that is slow stays, and the
    user is told once.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._slow: set[int] = set()
        self._waiting: deque[Event] = deque()
        self._emitting = False
        self.warnings: list[str] = []
        """What was said of listeners, for the report."""

    def add(self, listener: Listener, first: bool = False) -> None:
        """Send ``listener`` every event from now on.

        Args:
            listener: A callable that takes an event and leaves those alone that it does not know.
            first: It has each event before the others.

        Raises:
            InputTypeError: It cannot be called, or only awaited.
        """
        calls = (listener, type(listener).__dict__.get("__call__"))
        if not callable(listener) or any(map(inspect.iscoroutinefunction, calls)):
            what = "is asynchronous" if callable(listener) else f"is a {type(listener).__name__}"
            raise InputTypeError(f"The listener {_name_of(listener)} {what}: give a callable that takes an event")
        self._listeners.insert(0 if first else len(self._listeners), listener)

    def emit(self, event: Event) -> None:
        """Send an event to all listeners.

        Args:
            event: What has happened.

        Raises:
            StopRun: A listener wants the run to end. All others have had the event by then.
        """
        self._waiting.append(event)
        if self._emitting:
            return
        stop: StopRun | None = None
        self._emitting = True
        try:
            while self._waiting:
                stop = self._send(self._waiting.popleft()) or stop
        finally:
            self._emitting = False
        if stop is not None:
            raise stop

    def _send(self, event: Event) -> StopRun | None:
        stop: StopRun | None = None
        for listener in list(self._listeners):
            started = time.monotonic()
            try:
                listener(event)
            except StopRun as request:
                stop = stop or request
            except Exception as error:
                self._listeners = [each for each in self._listeners if each is not listener]
                log.debug("A listener failed", exc_info=True)
                self.warn(
                    f"The listener {_name_of(listener)} failed at {type(event).__name__} "
                    f"({type(error).__name__}: {error}){_place_of(error)}. It is switched off, and the run goes on"
                )
                continue
            seconds = time.monotonic() - started
            if seconds > SLOW_SECONDS and id(listener) not in self._slow:
                self._slow.add(id(listener))
                self.warn(
                    f"The listener {_name_of(listener)} took {seconds:.1f} s at {type(event).__name__}, and the run "
                    "waits for it each time. Let it do slow work in a thread of its own"
                )
        return stop

    def phase(self, name: str, total: int | None = None, done: int = 0) -> Phase:
        """Work that listeners hear of: ``PhaseStarted`` before the block and ``PhaseFinished`` after it, also where the
        block raises.

        Args:
            name: Of the phase.
            total: Its length, where it is known.
            done: How much of it is behind already.

        Returns:
            A context manager, whose ``at`` says how far it is.
        """
        return Phase(self, name, total, done)

    def warn(self, text: str) -> None:
        """Warn about a listener: all listeners are told, and the report says it.

        Args:
            text: Whole sentences.
        """
        self.warnings.append(text)
        self.emit(Warned(text=text))


class Phase(Progress):
    """Work of a run, which is shown as all work is (see ``domainclip.waiting``), and of which listeners hear. They hear
    of the work of known length within it as well, as phases of their own, once it takes longer than a moment.

    Args:
        emitter: Of the run.
        name: Of the phase.
        total: Its length, where it is known.
        done: How much of it is behind already.
    """

    def __init__(self, emitter: Emitter, name: str, total: int | None = None, done: int = 0) -> None:
        super().__init__(total, name.replace("_", " ").capitalize(), done)
        self.emitter, self.name = emitter, name
        self._parts: dict[Progress, float] = {}  # those told of, with the time until which no more is told

    def __enter__(self) -> Self:
        super().__enter__()
        self._started = time.monotonic()
        self.emitter.emit(PhaseStarted(name=self.name, total=self.total, done=self.done))
        return self

    def at(self, done: int, note: str = "", loss: float | None = None) -> None:
        """Note how far it is, and tell listeners.

        Args:
            done: Of ``total``.
            note: Said after it on the terminal.
            loss: The newest loss that has been read.
        """
        self.done, self.note = done, note or (f"loss {loss:.4f}" if loss is not None else "")
        self.emitter.emit(PhaseProgress(name=self.name, done=done, total=self.total or done, loss=loss))

    def _of_part(self, part: Progress, ended: bool = False) -> None:
        now = time.monotonic()
        if ended:
            if self._parts.pop(part, None) is not None:
                self.emitter.emit(PhaseFinished(name=part.what, seconds=now - part.began))
        elif part.total and now >= self._parts.get(part, part.began + FIRST_SECONDS):
            if part not in self._parts:
                self.emitter.emit(PhaseStarted(name=part.what, total=part.total))
            self._parts[part] = now + PART_SECONDS
            self.emitter.emit(PhaseProgress(name=part.what, done=part.done, total=part.total))

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.emitter.emit(PhaseFinished(name=self.name, seconds=time.monotonic() - self._started))


def _place_of(error: Exception) -> str:
    """The innermost line, where it is the user's to mend."""
    frames = traceback.extract_tb(error.__traceback__)
    return f", in {frames[-1].filename}, line {frames[-1].lineno}" if len(frames) > 1 else ""


def _name_of(listener: object) -> str:
    return getattr(listener, "__qualname__", None) or type(listener).__qualname__
