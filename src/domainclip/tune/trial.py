"""One trial: a fresh copy of the model, trained for a short budget, validated a few times, and thrown away."""

from __future__ import annotations

import gc
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig, FrozenConfig
from domainclip.data.records import ImageTextPair
from domainclip.errors import Interrupted, MemoryConstraintError, ShapeError, TrainingDivergedError
from domainclip.events import Event, StepLogged, StopRun, Validated
from domainclip.inference import EmbeddingEngine
from domainclip.models.library import first_line
from domainclip.output_record import LOCK_FILE, RECORD
from domainclip.pipelines.controller import CLIPFinetuningController
from domainclip.tune.study import Outcome

log = logging.getLogger(__name__)

VALIDATIONS = 4
"""Validations in a trial, besides those at the end of each epoch."""
_WEIGHTS = ("checkpoints", "best", "model")

Judge = Callable[[Validated], str]
"""Shown each validation after a step; returns why the trial should stop, or ''. What it raises stops the study."""


@dataclass(frozen=True)
class TrialResult:
    outcome: Outcome
    value: float | None
    standard_error: float | None
    steps: int
    seconds: float
    reason: str


class TrialListener:
    """Follows a trial's training, and stops it where ``judge`` says so.

    Args:
        judge: Looks at each validation.
        steps: Of the trial: its last validation has nothing left to save.
    """

    def __init__(self, judge: Judge, steps: int) -> None:
        self.judge, self.steps = judge, steps
        self.history: list[Validated] = []
        self.last_step = 0
        self.failure: Exception | None = None
        """What ``judge`` has raised: no matter of the trial."""

    def __call__(self, event: Event) -> None:
        """Take an event of the training.

        Raises:
            StopRun: The trial is to stop.
        """
        if isinstance(event, StepLogged | Validated):
            self.last_step = max(self.last_step, event.step)
        if not isinstance(event, Validated) or not event.step:
            return
        self.history.append(event)
        try:
            why = self.judge(event)
        except Exception as error:
            self.failure = error
            raise StopRun(str(error)) from error
        if why and event.step < self.steps:
            raise StopRun(why)


class TrialRunner:
    """Trains recipes that differ from ``config`` in a few keys, all on the same rows for ``steps`` steps.

    ``recipe``: ``config`` resolved, whose whole length is ``full_steps``. ``engine``: the decoded validation images
    in its cache serve every trial that sees them at the same size.
    """

    def __init__(
        self,
        config: CLIPFinetuningConfig,
        recipe: FrozenConfig,
        steps: int,
        full_steps: int,
        train: Sequence[ImageTextPair],
        val: Sequence[ImageTextPair],
        folder: Path,
        engine: EmbeddingEngine,
    ) -> None:
        self.config, self.recipe, self.steps, self.full_steps = config, recipe, steps, full_steps
        self.train, self.val, self.folder, self.engine = train, val, folder, engine
        self.eval_steps = math.ceil(steps / VALIDATIONS)

    def folder_of(self, number: int) -> Path:
        """Where a trial leaves its files.

        Args:
            number: of the trial.

        Returns:
            The folder.
        """
        return self.folder / "trials" / f"{number:04d}"

    def recipe_of(self, params: Mapping[str, Any], number: int) -> CLIPFinetuningConfig:
        """The recipe of one trial: its parameters and the budget laid over the user's.

        Args:
            params: values by key.
            number: of the trial.

        Returns:
            The checked recipe.

        Raises:
            ConfigurationError: these values are no recipe.
        """
        budget: dict[str, Any] = {
            "max_steps": self.steps,
            "num_epochs": max(self.recipe.num_epochs, self.steps),  # an epoch has a step at least: max_steps decides
            "eval_steps": self.eval_steps,
            "save_steps": self.steps,  # once, at the end, where the loop insists
            "logging_steps": self.eval_steps,
            "keep_checkpoints": 1,
            "alignment_visualization": False,
            # Trials are compared as they were trained; what is kept is decided in the run that follows.
            "retention_data": None,
            "wise_ft": None,
            "wise_ft_alpha": None,
            "output_dir": str(self.folder_of(number)),
        }
        for key in ("warmup_steps", "temp_warmup_steps"):  # set for the whole run, it would outlast the trial
            if self.config.is_set(key) and key not in params:
                fraction = getattr(self.config, key) / max(1, self.full_steps)
                budget[key] = max(int(key == "temp_warmup_steps"), round(fraction * self.steps))
        return self.config.updated(**{**params, **budget})

    def sweep(self) -> None:
        """Delete the weights that a killed trial left."""
        trials = self.folder / "trials"
        for trial in trials.iterdir() if trials.is_dir() else ():
            _delete_weights(trial)

    def __call__(self, number: int, params: Mapping[str, Any], judge: Judge) -> TrialResult:
        """Train and validate. Divergence and lack of memory are results; what else goes wrong is raised."""
        folder = self.folder_of(number)
        shutil.rmtree(folder, ignore_errors=True)
        started = time.monotonic()
        listener = TrialListener(judge, self.steps)
        controller = CLIPFinetuningController(self.recipe_of(params, number), Console(quiet=True))
        try:
            controller.setup()
            done = controller.fine_tune(
                self.train, self.val, folder, engine=self._engine(controller), listeners=[listener]
            )
        except StopRun as stop:
            if listener.failure is not None:
                raise listener.failure from listener.failure.__cause__  # the study's error, as it was
            last = listener.history[-1]
            result = TrialResult("pruned", last.value, last.standard_error, last.step, 0.0, str(stop))
        except Interrupted:
            raise
        except Exception as error:
            outcome = _known_outcome(error, controller, self.val[0])
            if outcome is None:
                raise
            result = TrialResult(
                outcome, None, None, listener.last_step, 0.0, first_line(error) or type(error).__name__
            )
        else:
            best = done["best"]
            last = listener.history[-1]
            errors = {validated.step: validated.standard_error for validated in listener.history}
            value, kept = (best["value"], best["step"]) if best else (last.value, last.step)
            result = TrialResult("complete", value, errors.get(kept, last.standard_error), done["steps"], 0, "")
        finally:
            _delete_weights(folder)
            self.engine.release()
            controller.unload()
            _free_memory()
        return TrialResult(
            result.outcome, result.value, result.standard_error, result.steps, time.monotonic() - started, result.reason
        )

    def _engine(self, controller: CLIPFinetuningController) -> EmbeddingEngine:
        engine = controller.engine()
        if engine.spec != self.engine.spec:
            return engine
        self.engine.encoder, self.engine.max_length = engine.encoder, engine.max_length
        return self.engine


def _known_outcome(error: Exception, controller: CLIPFinetuningController, row: ImageTextPair) -> Outcome | None:
    """What an error says of the trial's recipe; None where it says nothing. ``row``: any that can be read."""
    text = str(error).lower()
    # Torch has an error of its own for this on CUDA; MPS and the CPU raise a RuntimeError that says so.
    recognised = isinstance(error, RuntimeError) and any(
        words in text for words in ("out of memory", "can't allocate memory", "not enough memory")
    )
    if recognised or isinstance(error, MemoryConstraintError | MemoryError | torch.OutOfMemoryError):
        return "out_of_memory"
    if isinstance(error, TrainingDivergedError):
        return "diverged"
    # A step can spoil the weights with a finite loss: then it is an evaluator that meets embeddings without numbers.
    if isinstance(error, ShapeError) and controller.model is not None:
        engine, (image, caption) = controller.engine(), row
        embeds = torch.cat([engine.encode_images([image]), engine.encode_texts([caption])])
        return None if bool(torch.isfinite(embeds).all()) else "diverged"
    return None


def _delete_weights(folder: Path) -> None:
    """A trial's weights serve nothing once it is validated, and a study would fill the disk with them."""
    for name in (RECORD, LOCK_FILE):  # the study's own are those that count
        (folder / name).unlink(missing_ok=True)
    for name in _WEIGHTS:
        shutil.rmtree(folder / name, ignore_errors=True)
        for rest in folder.glob(f".{name}.*"):  # of a write that was cut off
            shutil.rmtree(rest, ignore_errors=True)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
