"""Before the first trial: model and data are looked at once, the space is resolved, the study is opened."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from domainclip.config.domain_name import is_domain_path
from domainclip.config.located_yaml import yaml_text
from domainclip.data.records import ImageTextPair
from domainclip.data.skipped import readable_pairs, skipped_rows
from domainclip.data.splits import DataSplits
from domainclip.domains.recipes import recorded_recipe, write_domain
from domainclip.errors import ConfigurationError, DataError
from domainclip.evaluation.build import build_evaluator
from domainclip.files import write_text
from domainclip.models.facts import model_facts
from domainclip.models.io import weights_digest
from domainclip.pipelines.auto_resolution import with_resolution
from domainclip.pipelines.controller import CLIPFinetuningController
from domainclip.pipelines.probe_resolution import may_be_larger
from domainclip.pipelines.run_folder import OutputFolder
from domainclip.resolve import DataFacts, ModelFacts, ResolvedInference, ResolvedRun, resolve, resolved_steps
from domainclip.resolve.facts import data_facts
from domainclip.training.identity import NEUTRAL_KEYS
from domainclip.tune import study as studies
from domainclip.tune.conditions import Conditions
from domainclip.tune.default_space import default_space
from domainclip.tune.results import TUNING_DOMAIN, Tuning
from domainclip.tune.space import Space
from domainclip.tune.trial import TrialRunner
from domainclip.words import counted

if TYPE_CHECKING:
    from optuna.study import Study

FEWEST_STEPS = 50
STARTUP_TRIALS = 5
"""Complete trials before one may be pruned: a median of fewer says little."""


def default_steps(full: int) -> int:
    """A trial's budget: a fifth of the whole run's steps, at least 50, never more than the whole.

    Args:
        full: steps of the whole run.

    Returns:
        Steps.
    """
    return min(full, max(FEWEST_STEPS, math.ceil(full / 5)))


@dataclass
class Work:
    """All that the trials of a study share."""

    tuning: Tuning
    """The study without its trials."""
    conditions: Conditions
    runner: TrialRunner
    study: Study

    def summary(self, asked: int) -> Tuning:
        """The study as it stands.

        Args:
            asked: how many trials there shall be in the end.

        Returns:
            What the reports are made of.
        """
        found = studies.records(self.study)
        return replace(
            self.tuning,
            asked=asked,
            trials=found,
            best=studies.best_record(found, self.tuning.greater_is_better),
            default=next((r for r in found if r.default and r.outcome == "complete"), None),
            importances=studies.importances(self.study, found),
        )


def prepare(
    inference: ResolvedInference,
    space: Space | None,
    steps: int | None,
    fixed: Container[str],
    splits: DataSplits,
    output: OutputFolder,
    resume: bool,
    overwrite: bool,
    console: Console,
) -> Work:
    """Look at model and data once, decide what is to be searched, and open the study. Nothing is deleted before all
    that a user can have got wrong has been looked at.

    Args:
        inference: recipe and domain.
        space: what is searched; None for the default.
        steps: of each trial, or None.
        fixed: keys that are not to be searched.
        splits: the rows.
        output: the folder of the study.
        resume: go on with the study there.
        overwrite: delete the study there.
        console: where it says what happens.

    Returns:
        All that the trials share.

    Raises:
        ConfigurationError: the space reaches what is no recipe for this model and these rows, or the study there is of
            another task.
    """
    config, folder = inference.recipe, output.path
    controller = CLIPFinetuningController(inference, Console(quiet=True))
    controller.setup()
    session = controller.session
    console.print(f"Device: {session.device} ({session.device_manager.reason})", markup=False)
    console.print(f"Precision: {session.precision.name} ({session.precision.reason})", markup=False)
    for note in splits.notes:
        console.print(f"Data: {note}", markup=False)
    recipe = controller.prepare(splits.train)
    run = controller.run
    assert run is not None
    # Chosen once, for all trials.
    if config.auto_resolution:
        config = with_resolution(config, recipe.image_resolution)
    elif may_be_larger(config, session):
        config = config.updated(
            image_resolution=recipe.image_resolution, resolution_schedule=recipe.resolution_schedule
        )
    engine = session.engine()
    skipped = skipped_rows({"train": splits.train, "val": splits.val})
    val = readable_pairs(splits.val, engine.readable, "val", config.strict, skipped)
    if not len(val):
        raise DataError(f"No image of the validation split can be read, such as: {skipped[0]['reason']}")
    evaluator = build_evaluator(session, val)
    found = studies.open_study(folder, evaluator.greater_is_better) if resume else None
    known = (found.user_attrs.get("identity") if found else None) or {}
    if space is None:
        space = (
            Space.from_dict(known["space"])
            if known
            else default_space(config, run, fixed, scale_is_clamped=not session.encoder.is_siglip)
        )
        if not space.dimensions:
            raise ConfigurationError("Every key of the default search space is fixed: name others with space=…")
        space.check(config)
    full = resolved_steps(recipe, len(splits.train))
    steps = steps or known.get("steps") or default_steps(full)
    conditions = Conditions(space, config, recipe.to_dict())
    # TrialRunner sets the budget, so it is no part of what the study is of.
    own = config.to_dict(only_set=True)
    identity = {
        "recipe": {key: value for key, value in own.items() if key not in NEUTRAL_KEYS | {"model_name"}}
        | _domain_identity(run),
        "data": _rows_digest([*splits.train, *splits.val]),
        "model": weights_digest(session.encoder),
        "space": space.to_dict(),
        "steps": steps,
        "metric": evaluator.primary_metric,
    }
    runner = TrialRunner(config, recipe, steps, full, splits.train, val, folder, engine)
    _check_trials(runner, space, model_facts(session.encoder), data_facts(splits.train))
    engine.release()  # each trial loads its own model
    controller.unload()
    del session
    if found is not None:
        studies.check_identity(found, identity)
    elif overwrite:
        output.clear()
    output.begin()
    study = found or studies.open_study(folder, evaluator.greater_is_better)
    studies.check_identity(study, identity)
    for number in studies.recover(study):
        console.print(f"Trial {number} was cut off by a kill: its parameters are tried again")
    runner.sweep()
    studies.enqueue_default(study, conditions.default_params())
    import optuna

    study.pruner = optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=runner.eval_steps + 1, n_min_trials=3)
    write_domain(run.domain, folder, TUNING_DOMAIN)
    if is_domain_path(config.domain):  # its file may change, the study's may not
        runner.config = config.updated(domain=str(folder / TUNING_DOMAIN))
    own = recorded_recipe(own, TUNING_DOMAIN)
    write_text(folder / "tuning_recipe.yaml", yaml_text(own, sort_keys=True))
    write_text(folder / "space.yaml", yaml_text(space.to_dict()))
    fraction = f"{steps / full:.0%} of the whole run's {full}"
    console.print(
        f"Each trial: {counted(steps, 'step')} ({fraction}), a validation every {runner.eval_steps} and after "
        "each epoch"
    )
    console.print("Searched: " + "  ".join(map(str, space.dimensions)), markup=False, highlight=False)
    counts = {"train": len(splits.train), "validation": len(val)}
    metric = evaluator.primary_metric, evaluator.greater_is_better
    tuning = Tuning(config, recipe, space, *metric, steps, full, counts, skipped)
    return Work(tuning, conditions, runner, study)


def _domain_identity(run: ResolvedRun) -> dict[str, Any]:
    """A domain out of a file is known by its content: the file may move, and may not change within a study."""
    if not is_domain_path(run.recipe.domain):
        return {}
    return {"domain": {"digest": run.domain.digest(), "recipe": run.domain.recipe_values()}}


def _check_trials(runner: TrialRunner, space: Space, model: ModelFacts, data: DataFacts) -> None:
    """Every end of the space must be a recipe for this model and these rows too, with the budget laid over it."""
    for dimension in space.dimensions:
        if dimension.key.endswith("model_name"):  # another model has other facts
            continue
        for end in dimension.ends:
            try:
                resolve(runner.recipe_of({dimension.key: end}, 0), model, data)
            except ConfigurationError as error:
                raise ConfigurationError(f"The search space reaches {dimension.key}={end}: {error}") from None


def _rows_digest(pairs: Sequence[ImageTextPair]) -> str:
    """SHA-256 of rows in their order; the folder that holds the images may move."""
    paths = [str(pair.image_path) for pair in pairs]
    try:
        base = os.path.commonpath(paths)
    except ValueError:  # several drives, or absolute and relative paths together
        base = ""
    rows = [
        [os.path.relpath(path, base) if base else path, pair.caption, pair.label, pair.group]
        for path, pair in zip(paths, pairs, strict=True)
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
