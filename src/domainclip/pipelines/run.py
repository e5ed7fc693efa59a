"""A whole run from a recipe: data, the evaluation before, training, the evaluation after, the report."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.key_facts import facts_by_key
from domainclip.config.located_yaml import yaml_text
from domainclip.config.recipe_files import parse_recipe
from domainclip.data.images.reader import image_header
from domainclip.data.records import ImageTextPair
from domainclip.data.skipped import readable_pairs, require_images, skipped_rows
from domainclip.data.splits import DataSplits, load_splits_of
from domainclip.devices import DeviceManager
from domainclip.domains.recipes import recorded_recipe, write_domain
from domainclip.errors import ConfigurationError
from domainclip.evaluation.build import build_evaluator
from domainclip.evaluation.protocols import EvaluationResult, RememberedImages
from domainclip.events import Listener
from domainclip.files import try_folder, write_json, write_text
from domainclip.inference import ModelSession
from domainclip.pipelines.assemble import training_data
from domainclip.pipelines.calibrate import calibrate
from domainclip.pipelines.controller import CLIPFinetuningController
from domainclip.pipelines.error_analysis import expect_shown, write_error_analysis_of
from domainclip.pipelines.reference_sets import load_reference_sets
from domainclip.pipelines.report_facts import run_facts
from domainclip.pipelines.run_alignment import BEFORE_FILE, RunAlignment
from domainclip.pipelines.wise_ft import check_start
from domainclip.reports.alignment_report import remove_report
from domainclip.reports.error_analysis_page import FILE as ERROR_ANALYSIS
from domainclip.reports.model_card import model_card
from domainclip.reports.run_report import FILES as REPORT_FILES
from domainclip.reports.run_report import before_after_table, write_report
from domainclip.reports.schema import RunReport
from domainclip.reports.schema.base import jsonable
from domainclip.resolve import resolve_for_inference
from domainclip.tracking import read_metrics
from domainclip.training.checkpoint import CheckpointStore
from domainclip.training.distributed import ProcessGroup, claim_local_gpu, world_size
from domainclip.training.identity import NEUTRAL_KEYS

REFERENCE_BEFORE = "reference_before.json"
_PARTS = (
    "recipe.yaml",
    "domain.yaml",
    "run.json",
    "before.json",
    REFERENCE_BEFORE,
    BEFORE_FILE,
    "metrics.jsonl",
    "memory.json",
    "checkpoints",
    "best",
    "model",
    "plots",
    *REPORT_FILES,
    "skipped.json",
    ERROR_ANALYSIS,
)
"""What a run writes into its folder; nothing else in there is touched."""


@dataclass
class RunOutcome:
    """A run's folder and its report, which only the first of several processes has."""

    folder: Path
    report: RunReport | None


def claim_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Make sure, before any work, that the run can be written here and destroys no other; deletes nothing yet.

    Raises ``ConfigurationError`` for a folder that cannot be written, or that holds another run.
    """
    if resume and overwrite:
        raise ConfigurationError("--resume goes on with a run and --overwrite deletes it: give one of the two")
    try:
        try_folder(folder)
    except OSError as error:
        raise ConfigurationError(
            f"The output directory {folder} cannot be written: {error.strerror or error}. Give another one"
        ) from None
    used = [name for name in _PARTS if (folder / name).exists()]
    if used and not resume and not overwrite:
        raise ConfigurationError(
            f"{folder} already holds a run ({', '.join(used[:3])}). Use --resume to go on with it, --overwrite to "
            "start again, or another output directory"
        )


def clear_folder(folder: Path) -> None:
    """Delete what an earlier run wrote here, and nothing else."""
    for name in _PARTS:
        path = folder / name
        if path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    remove_report(folder / "alignment")


def environment() -> dict[str, Any]:
    """Versions a run depends on."""
    packages: dict[str, str | None] = {}
    for name in ("domainclip", "torch", "transformers", "numpy", "pillow", "simplejpeg", "safetensors"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": packages}


def run_training(
    config: CLIPFinetuningConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    splits: DataSplits | None = None,
    listeners: Sequence[Listener] = (),
) -> RunOutcome:
    """Everything ``domainclip train`` does. The folder ``config.output_dir`` then holds what repeats the run.

    ``listeners`` are called with each event of the training (see ``domainclip.events``).

    Started by ``torchrun`` in several processes, these train together, and the first of them does all the rest; the
    outcome of the others has an empty report.

    Raises the package's errors for bad input before work starts; ``Interrupted`` after SIGINT or SIGTERM.
    """
    console = console or Console(stderr=True)
    if world_size() == 1:
        return _run(config, resume, overwrite, console, splits, None, listeners)
    claim_local_gpu()
    processes = ProcessGroup.from_environment(DeviceManager(config.use_mps, config.device).device)
    assert processes is not None
    with processes:
        if processes.is_first:
            return _run(config, resume, overwrite, console, splits, processes, listeners)
        return _run_beside_the_first(config, resume, splits, processes)


def _run_beside_the_first(
    config: CLIPFinetuningConfig, resume: bool, splits: DataSplits | None, processes: ProcessGroup
) -> RunOutcome:
    """What a process does that lends the first one its device: it trains, and is silent."""
    logging.getLogger("domainclip").setLevel(logging.ERROR)
    inference = resolve_for_inference(config)
    if splits is None:
        splits = load_splits_of(inference)
    controller = CLIPFinetuningController(inference, Console(quiet=True), processes)
    controller.setup()
    controller.prepare(splits.train, Path(config.output_dir) if resume else None)
    validates: bool = processes.broadcast_object(None)  # once the first has looked at everything
    controller.fine_tune(splits.train, splits.val if validates else None, config.output_dir, resume=resume)
    return RunOutcome(Path(config.output_dir), None)


def _run(
    config: CLIPFinetuningConfig,
    resume: bool,
    overwrite: bool,
    console: Console,
    splits: DataSplits | None,
    processes: ProcessGroup | None,
    listeners: Sequence[Listener],
) -> RunOutcome:
    folder = Path(config.output_dir)
    started = time.monotonic()
    inference = resolve_for_inference(config)
    if splits is None:
        splits = load_splits_of(inference)
    require_images(splits.train, lambda row: image_header(splits.train[row].image_path, config.max_image_pixels))
    claim_folder(folder, resume, overwrite)
    controller = CLIPFinetuningController(inference, console, processes)
    controller.setup()
    session = controller.session
    console.print(f"Device: {session.device} ({session.device_manager.reason})")
    if processes is not None:
        console.print(f"Processes: {processes.world_size}, each with its part of every batch")
    console.print(f"Precision: {session.precision.name} ({session.precision.reason})")
    for note in splits.notes:
        console.print(f"Data: {note}", markup=False)

    recipe = controller.prepare(splits.train, folder if resume else None)
    reference_sets = load_reference_sets(session)
    if reference_sets is not None:
        controller.decisions = reference_sets.explained(controller.decisions)
    for note in reference_sets.notes if reference_sets is not None else []:
        console.print(f"Data: {note}", markup=False)
    for decision in controller.decisions:
        console.print(f"  {decision.key} = {decision.value}  ({decision.reason})", highlight=False, markup=False)
    engine = session.engine()
    skipped = skipped_rows({"train": splits.train, "val": splits.val, "test": splits.test})
    if recipe.error_analysis:
        expect_shown(engine, splits.test or splits.val)
    val = readable_pairs(splits.val, engine.readable, "val", config.strict, skipped)
    test = readable_pairs(splits.test, engine.readable, "test", config.strict, skipped)
    assert controller.run is not None
    data = training_data(splits.train, controller.run, session)
    require_images(data.pairs, lambda row: data.clean_and_augmented(row, [row]))  # whichever is asked for next
    evaluation_rows, evaluated_split = (test, "test") if len(test) else (val, "val")
    check_start(session, val, test)
    alignment, undrawn = _alignment(session, evaluation_rows, evaluated_split, folder)
    if overwrite and not resume:  # only now: everything that a user can have got wrong has been looked at
        clear_folder(folder)
    # What a checkpoint was trained with stays on record: should this resumption be refused, it is what repeats the run.
    going_on = resume and bool(CheckpointStore(folder / "checkpoints").all())
    saved = recorded_recipe(recipe.to_dict())
    if not (going_on and (folder / "recipe.yaml").is_file()):
        write_domain(session.domain, folder)
        write_text(folder / "recipe.yaml", yaml_text(saved, sort_keys=True))
    decisions = [decision.to_dict() for decision in controller.decisions]
    if going_on and (folder / "run.json").is_file():  # resumed from the resolved recipe, nothing is left to decide
        decisions = json.loads((folder / "run.json").read_text(encoding="utf-8"))["decisions"]
    write_json(
        folder / "run.json",
        jsonable(
            {
                "command": sys.argv,
                "environment": environment(),
                "decisions": decisions,
                "device": {"type": session.device.type, "name": session.device_manager.name},
                "precision": session.precision.name,
                "notes": splits.notes,
            }
        ),
    )

    untrained = RememberedImages(engine)
    kept = going_on and not _evaluated_otherwise(folder, saved)
    before = _before(session, evaluation_rows, untrained, folder, kept) if len(evaluation_rows) else None
    if alignment is not None:
        alignment.remember_before(untrained, going_on)
    del untrained
    known = reference_sets.before(folder / REFERENCE_BEFORE, going_on) if reference_sets is not None else {}
    if processes is not None:
        processes.broadcast_object(bool(len(val)))
    result = controller.fine_tune(
        data,
        val if len(val) else None,
        folder,
        resume=resume,
        engine=engine,
        listeners=listeners,
        reference_sets=reference_sets,
    )
    if going_on:
        decisions = _record_changes(folder, saved, decisions)
    skipped += [
        {"split": "train", "image_path": path, "reason": reason} for path, reason in result["skipped_images"].items()
    ]
    skipped += reference_sets.skipped if reference_sets is not None else []
    if skipped:
        write_json(folder / "skipped.json", skipped)
    embed = RememberedImages(engine)
    after = (
        build_evaluator(session, evaluation_rows, domain_metrics=True).evaluate(embed) if len(evaluation_rows) else None
    )
    calibration = calibrate(session, val, test, embed, folder)
    parts: dict[str, Any] = {"decisions": decisions, "calibration": calibration}
    warnings = [*undrawn]
    if recipe.error_analysis and len(evaluation_rows):
        parts["error_analysis"] = ERROR_ANALYSIS
    if reference_sets is not None:
        parts["reference_sets"] = reference_sets.report(known, reference_sets.on_test())
        warnings = [*reference_sets.warnings, *undrawn]
    if alignment is not None:
        parts["alignment"] = str(_seen_from(folder, alignment.folder / "report.md"))
    run_time_s = time.monotonic() - started
    facts = run_facts(session, splits, evaluated_split, result, skipped, folder, run_time_s, warnings=warnings, **parts)
    history = read_metrics(folder / "metrics.jsonl")

    def as_the_model_sees_it(path: Path) -> np.ndarray:
        return engine.pixels([path])[0].permute(1, 2, 0).numpy()

    report = write_report(folder, facts, before, after, history, as_the_model_sees_it)
    write_text(folder / "model" / "README.md", model_card(report))
    if alignment is not None:
        of_split = [row for row in skipped if row["split"] == evaluated_split]
        alignment.write(embed, of_split, recipe.retrieval_top_k)
        console.print(f"Alignment: {alignment.folder / 'report.md'}", markup=False)
    # After the reports: an image that cannot be shown must not cost the figures.
    if facts.error_analysis:
        title = f"{folder.resolve().name}: after fine-tuning, {evaluated_split} split"
        write_error_analysis_of(session, evaluation_rows, engine, embed, folder, title)
    console.print(before_after_table(report))
    console.print(f"Report: {folder / 'report.md'}\nModel:  {folder / 'model'}", markup=False)
    return RunOutcome(folder, report)


def _evaluated_otherwise(folder: Path, saved: dict[str, Any]) -> bool:
    """Whether a resumption has changed how the model is evaluated, so that what was measured before the training has to
    be measured again, on the initial weights."""
    before, _ = parse_recipe((folder / "recipe.yaml").read_text(encoding="utf-8"), "recipe.yaml")
    asked = [name for name, facts in facts_by_key(CLIPFinetuningConfig) if facts.section == "evaluation"]
    return any(before.get(name) != saved.get(name) for name in asked)


def _record_changes(folder: Path, saved: dict[str, Any], decisions: list[dict]) -> list[dict]:
    """Write down what a resumption, now that it was not refused, has changed of the keys that it may change; the
    decisions that still hold."""
    before, _ = parse_recipe((folder / "recipe.yaml").read_text(encoding="utf-8"), "recipe.yaml")
    changed = {key: saved[key] for key in NEUTRAL_KEYS & saved.keys() if before.get(key) != saved[key]}
    if not changed:
        return decisions
    write_text(folder / "recipe.yaml", yaml_text(before | changed, sort_keys=True))
    decisions = [each for each in decisions if each["key"] not in changed]
    content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    write_json(folder / "run.json", content | {"decisions": decisions})
    return decisions


def _before(
    session: ModelSession,
    pairs: list[ImageTextPair],
    embed: RememberedImages,
    folder: Path,
    resume: bool,
) -> EvaluationResult:
    """The evaluation of the untrained weights; a resumed run reads what the first start found."""
    kept = folder / "before.json"
    if resume and kept.is_file():
        return EvaluationResult.from_dict(json.loads(kept.read_text(encoding="utf-8")))
    result = build_evaluator(session, pairs, domain_metrics=True).evaluate(embed)
    write_json(kept, jsonable(asdict(result)))
    return result


def _alignment(
    session: ModelSession, pairs: list[ImageTextPair], split: str, folder: Path
) -> tuple[RunAlignment | None, list[str]]:
    """The alignment report that is asked for, or why it cannot be made of these rows."""
    if not session.config.alignment_visualization:
        return None, []
    evaluator = build_evaluator(session, pairs) if len(pairs) else None
    if evaluator is None or evaluator.retrieval is None:
        reasons = evaluator.notes if evaluator is not None else ["There are no rows to evaluate the model on"]
        return None, [f"alignment_visualization had nothing to draw. {'. '.join(reasons)}"]
    return RunAlignment(session.resolved, pairs, split, folder), []


def _seen_from(folder: Path, path: Path) -> Path:
    """``path`` as a link in a file of ``folder``: relative where it lies inside, so that the folder may move."""
    return path.relative_to(folder) if path.is_relative_to(folder) else path.resolve()
