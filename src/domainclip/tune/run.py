"""``run_tuning``: many short trials of a recipe with some keys varied, on the same rows, compared by validation
alone."""

from __future__ import annotations

import time
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.readers import refuse_within_a_reader
from domainclip.data.splits import DataSplits, load_splits_of
from domainclip.errors import ConfigurationError, DataError, InputTypeError, Interrupted
from domainclip.events import Validated
from domainclip.pipelines.output_lock import locked_output
from domainclip.pipelines.run_folder import OutputFolder, paths_read
from domainclip.reports.schema.tuning import TrialRecord
from domainclip.resolve import resolve_for_inference
from domainclip.training.distributed import world_size
from domainclip.tune import study as studies
from domainclip.tune.prepare import Work, prepare
from domainclip.tune.results import PARTS, trial_line, write_results
from domainclip.tune.space import Space
from domainclip.tune.stopping import StudySignals
from domainclip.waiting import Progress
from domainclip.words import some_of

if TYPE_CHECKING:
    from optuna.trial import Trial


REDRAW_SECONDS = 20
"""The images are renewed after a trial unless they are newer than this: drawing takes a second."""


@dataclass
class TuningOutcome:
    """``best`` and ``default`` are among ``trials``; None where no trial of that kind came to an end."""

    folder: Path
    trials: list[TrialRecord]
    best: TrialRecord | None
    default: TrialRecord | None
    recipe: Path | None
    """``best.yaml``, ready for ``domainclip train --recipe``."""


def run_tuning(
    config: CLIPFinetuningConfig,
    space: Space | None = None,
    *,
    trials: int | None = None,
    steps: int | None = None,
    fixed: Container[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    splits: DataSplits | None = None,
) -> TuningOutcome:
    """Everything ``domainclip tune`` does, in the folder ``config.output_dir``. The test split is never looked at. A
    trial     that diverges or runs out of memory is recorded, and the study goes on.

    Args:
        config: the recipe as the user gave it.
        space: what is searched; None for the default space around the recipe, or for that of the study that is resumed.
        trials: how many there shall be in the end, the recipe as it stands among them (it is the first); None for as
            many as the study that is resumed was to have, and 20 for a new one.
        steps: optimizer steps of each; None for a fifth of the whole run's, at least 50.
        fixed: keys that are not to be searched.
        resume: go on with the study in the folder.
        overwrite: delete the study in the folder.
        console: where it says what happens; by default standard error.
        splits: the rows, for a caller who has them already.

    Returns:
        The trials, and the best recipe.

    Raises:
        ConfigurationError: bad input, before work starts (a range outside a key's limits, a study of other data;
            ``DataError`` without a validation split, ``MissingExtraError`` without Optuna); ``Interrupted`` is raised
            after SIGINT or SIGTERM.
    """
    refuse_within_a_reader()
    if not isinstance(config, CLIPFinetuningConfig):
        raise InputTypeError(f"config is a {type(config).__name__}: give a CLIPFinetuningConfig")
    studies.require_optuna()
    console = console or Console(stderr=True)
    folder = Path(config.output_dir)
    _check_request(config, space, trials, steps, fixed)
    inference = resolve_for_inference(config)
    if splits is None:
        splits = load_splits_of(inference)
    if not len(splits.val):
        raise DataError(
            "Tuning compares trials on the validation split, and there is none: set val_split, or add a validation "
            "table to the data. The test split is not used for it"
        )
    signals, output = StudySignals(console), OutputFolder(folder, PARTS, "study")
    lock = locked_output(folder, "The output directory", console.print)
    with lock, _optuna_speaks_of_errors_only(), _storage_failures_are_reported(folder):
        output.claim(resume, overwrite, paths_read(inference.recipe))
        work = prepare(inference, space, steps, fixed, splits, output, resume, overwrite, console)
        trials = studies.asked_trials(work.study, trials)
        try:
            with signals.watch():
                _run_trials(work, trials, signals, console)
        except Interrupted as stop:
            summary = work.summary(trials)
            done = sum(record.finished for record in summary.trials)
            write_results(folder, summary, plots=True)
            output.end()
            raise Interrupted(
                stop.exit_code - 128, f"Stopped; finished: {some_of(done, trials, 'trial')}. Go on with resume=True"
            ) from None
        summary = work.summary(trials)
        write_results(folder, summary, plots=True)
        output.end()
    console.print(f"Report: {folder / 'tuning.md'}", markup=False, highlight=False)
    recipe = folder / "best.yaml" if summary.best else None
    if recipe:
        console.print(
            f"Best recipe: {recipe}\nTrain it in full with: domainclip train --recipe {recipe} --output DIR",
            markup=False,
            highlight=False,
        )
    return TuningOutcome(folder, summary.trials, summary.best, summary.default, recipe)


def _check_request(
    config: CLIPFinetuningConfig, space: Space | None, trials: int | None, steps: int | None, fixed: Container[str]
) -> None:
    if world_size() > 1:
        raise ConfigurationError("A search runs in one process: start it without torchrun")
    if trials is not None and trials < 1:
        raise ConfigurationError(f"The number of trials must be positive (trials={trials})")
    if steps is not None and steps < 1:
        raise ConfigurationError(f"The steps of a trial must be positive (steps={steps})")
    if space is not None:
        both = [dimension.key for dimension in space.dimensions if dimension.key in fixed]
        if both:
            raise ConfigurationError(f"{both[0]} is fixed and searched at once: take it out of one of the two")
        if not space.dimensions:
            raise ConfigurationError("The search space is empty: name a key, as in learning_rate=1e-6..1e-4:log")
        space.check(config)


def _run_trials(work: Work, trials: int, signals: StudySignals, console: Console) -> None:
    study, drawn = work.study, 0.0

    def finished() -> int:
        return sum(record.finished for record in studies.records(study))

    with Progress(trials, "Trials", finished()) as progress:
        while (done := finished()) < trials:
            progress.at(done)
            signals.check()
            trial = studies.draw(study, work.tuning.recipe.seed, trials)
            try:
                _one_trial(work, trial, signals, progress)
            except Interrupted:
                studies.fail(study, trial, "interrupted", "stopped by a signal", again=True)
                raise
            except Exception as error:  # what stops the study is told by its own message; here the trial is closed
                again = not isinstance(error, ConfigurationError)  # these values would fail again
                studies.fail(study, trial, "error", str(error), again=again)
                raise
            studies.seal(study)
            summary = work.summary(trials)
            draw = time.monotonic() - drawn > REDRAW_SECONDS
            write_results(work.runner.folder, summary, plots=draw)
            drawn = time.monotonic() if draw else drawn
            record = next(r for r in summary.trials if r.number == trial.number)
            console.print(trial_line(record, summary), markup=False, highlight=False, soft_wrap=True)
    signals.check()


def _one_trial(work: Work, trial: Trial, signals: StudySignals, progress: Progress) -> None:
    from optuna.trial import TrialState

    study, default = work.study, bool(trial.user_attrs.get("default"))
    only = set(studies.labels(study, trial.number)) if default else None
    params = work.conditions.suggest(trial, only)

    def judge(validated: Validated) -> str:
        trial.report(validated.value, validated.step)
        progress.note = f"trial {trial.number}: {validated.primary} {validated.value:.4f} at step {validated.step}"
        signals.check()
        if not default and trial.should_prune():  # the yardstick itself is measured whole
            return f"below the median of the trials before it at step {validated.step}"
        return ""

    # The default is the recipe with nothing changed: setting a key to the value it would resolve to is a choice
    # too (a set temperature, for one, is not the model's own any more).
    result = work.runner(trial.number, {} if default else params, judge)
    studies.note(
        study,
        trial,
        outcome=result.outcome,
        reason=result.reason,
        seconds=result.seconds,
        steps=result.steps,
        standard_error=result.standard_error,
    )
    if result.outcome == "complete":
        study.tell(trial, result.value)
    else:  # "pruned" to Optuna, so that its sampler learns to keep away from what diverges
        study.tell(trial, state=TrialState.PRUNED)


@contextmanager
def _storage_failures_are_reported(folder: Path) -> Iterator[None]:
    """A full disk reaches us as Optuna's own error, from within whichever call wrote to the study."""
    import optuna

    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        cause = getattr(error.__cause__, "orig", None) or error.__cause__ or error
        raise ConfigurationError(
            f"The study {folder / 'study.db'} cannot be written: {cause}. Finished trials are kept: free some space or "
            "mend the file, then go on with resume=True"
        ) from error


@contextmanager
def _optuna_speaks_of_errors_only() -> Iterator[None]:
    """Its own lines would repeat ours."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
