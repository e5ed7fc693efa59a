"""A whole run from a recipe: data, the evaluation before, training, the evaluation after, the report."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.checks.captions import unknown_captions
from domainclip.data.images.reader import image_header
from domainclip.data.readers import refuse_within_a_reader
from domainclip.data.records import PairList
from domainclip.data.skipped import readable_pairs, require_images, skipped_rows, unreadable_rows
from domainclip.data.splits import DataSplits, load_splits_of
from domainclip.devices import DeviceManager
from domainclip.errors import InputTypeError
from domainclip.evaluation.build import build_evaluator
from domainclip.evaluation.protocols import EvaluationResult
from domainclip.evaluation.shared import SharedEmbedder
from domainclip.events import Emitter, Listener
from domainclip.files import read_record, write_json, write_record, write_text
from domainclip.inference import EmbeddingEngine, ModelSession
from domainclip.inference.model_record import ModelRecord
from domainclip.models.vocabulary import Vocabulary
from domainclip.pipelines.assemble import announce_images, classes_of, training_data
from domainclip.pipelines.calibrate import calibrate
from domainclip.pipelines.error_analysis import expect_shown, write_error_analysis_of
from domainclip.pipelines.fine_tune import Processes, fine_tune, load_for_training, resolve_run
from domainclip.pipelines.output_lock import locked_output
from domainclip.pipelines.plain_use import plain_use
from domainclip.pipelines.reference_sets import ReferenceSets, with_reference_sets
from domainclip.pipelines.report_facts import run_facts
from domainclip.pipelines.run_alignment import RunAlignment
from domainclip.pipelines.run_folder import RunFolder, paths_read
from domainclip.pipelines.run_listeners import RunListeners
from domainclip.pipelines.run_record import RunRecord
from domainclip.pipelines.wise_ft import check_start
from domainclip.reports.error_analysis_page import FILE as ERROR_ANALYSIS
from domainclip.reports.model_card import model_card, using_code
from domainclip.reports.notebook import report_html, report_line
from domainclip.reports.run_report import before_after_table, write_report
from domainclip.reports.schema import RunReport
from domainclip.reports.schema.base import jsonable
from domainclip.resolve import ResolvedRun, resolve_for_inference
from domainclip.signals import StopSignals
from domainclip.tracking import ConsoleListener, notebook_display, read_rows, usual_console
from domainclip.training.distributed import OneProcess, ProcessGroup, claim_local_gpu, world_size
from domainclip.waiting import Progress

T = TypeVar("T")


@dataclass(repr=False)
class RunOutcome:
    """What a run leaves. As the value of a notebook's cell it shows the verdict, a plot and a table.

    Attributes:
        folder: Where everything is.
        content: The content of ``report.json``; None in all processes but the first.
    """

    folder: Path
    content: RunReport | None

    def __repr__(self) -> str:
        said = report_line(self.content) if self.content is not None else "the first process has the report"
        return f"RunOutcome({said}; {self.folder})"

    def _repr_html_(self) -> str | None:
        return report_html(self.content, self.folder) if self.content is not None else None

    @property
    def report(self) -> RunReport:
        """The content of ``report.json``.

        Raises:
            RuntimeError: This process trained beside the first one, which alone has the report.
        """
        if self.content is None:
            raise RuntimeError(f"This process trained beside the first one, which has the report: see {self.folder}")
        return self.content


def run_training(
    config: CLIPFinetuningConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    accept_changed_data: bool = False,
    console: Console | None = None,
    splits: DataSplits | None = None,
    listeners: Sequence[Listener] = (),
) -> RunOutcome:
    """Everything ``domainclip train`` does. The folder ``config.output_dir`` then holds what repeats the run.

    Started by ``torchrun`` in several processes, these train together; the first of them alone evaluates and writes.

    Args:
        config: The recipe.
        resume: Go on with the run in the folder.
        overwrite: Replace the run in the folder, once everything that can be wrong with this one has been looked at.
        accept_changed_data: Go on with a run whose rows or images have changed since it began.
        console: Where the course is shown; standard error, or in a notebook below the cell, if left out.
        splits: The rows; those of ``config.data_path``, if left out.
        listeners: Called with each event of the run (see ``domainclip.events``), in the first of several processes.

    Returns:
        The folder and the report.

    Raises:
        CLIPFinetuningError: One of the package's errors, for bad input before work starts.
        Interrupted: SIGINT, SIGTERM or SIGHUP has stopped the run, which was saved.
    """
    refuse_within_a_reader()
    if not isinstance(config, CLIPFinetuningConfig):
        raise InputTypeError(f"config is a {type(config).__name__}: give a CLIPFinetuningConfig")
    started = time.monotonic()
    emitter, no_console = Emitter(), console is None
    for listener in listeners:
        emitter.add(listener)
    folder, stop = RunFolder(config.output_dir), StopSignals(at_once=True)
    with stop.watch(), _processes(config) as processes, ExitStack() as held:
        console = (console or usual_console()) if processes.is_first else Console(quiet=True)
        emitter.add(ConsoleListener(console), first=True)
        for display in held.enter_context(notebook_display(no_console and processes.is_first)):
            emitter.add(display)
        inference = resolve_for_inference(config)
        if processes.is_first:
            held.enter_context(locked_output(folder.path, "The output directory", console.print))
            folder.claim(resume, overwrite, paths_read(inference.recipe))
            tracking = RunListeners.of(inference.recipe)
            held.enter_context(tracking.scraped(folder, emitter))
        splits = splits or load_splits_of(inference)
        if processes.is_first:
            train, most = splits.train, config.max_image_pixels
            require_images(train, lambda row: image_header(train[row].image_path, most))
        session = load_for_training(inference, console)
        splits = replace(splits, notes=[*splits.notes, *_unknown_captions(session, splits)])
        _show_machine(session, processes, splits, console)
        resume_from = folder.path if resume else None
        evaluated = {"validation_rows": len(splits.val), "test_rows": len(splits.test)}
        run = resolve_run(config, session, splits.train, processes, resume_from, None, **evaluated)
        run, references = with_reference_sets(session, run, processes.is_first)
        _show_decisions(run, references, console)
        engine, data = session.engine(), training_data(splits.train, run, session)
        first = None
        if processes.is_first:
            announce_images(run, session, engine, data, splits.val)
            rows = _EvaluatedRows.of(splits, run, engine)
            require_images(data.pairs, data.clean)
            check_start(session, rows.val, rows.test)
            first = _FirstProcess(folder, session, run, splits, rows, engine, references, console, started, emitter)
            first.record.look_at_data(resume, accept_changed_data)
            if overwrite and not resume:  # only now: everything that a user can have got wrong has been looked at
                folder.clear()
            folder.begin()
            held.callback(folder.end)
            energy = held.enter_context(tracking.listening(folder, emitter, console, session.device))
            first.record.begin(resume)
            stop.advice = ". What was saved is whole: go on with resume=True"
            first.evaluate_before()
        val = processes.broadcast_object(first.rows.val if first is not None else None)
        result = fine_tune(
            session,
            run,
            data,
            val or [],
            folder,
            resume=resume,
            engine=engine,
            listeners=[first.record] if first is not None else [],
            emitter=emitter if first is not None else None,
            reference_sets=references,
            processes=processes,
            console=console,
            accept_changed_data=accept_changed_data,
        )
        if first is None:
            return RunOutcome(folder.path, None)
        return RunOutcome(folder.path, first.finish(result | {"energy": energy.record}))


@contextmanager
def _processes(config: CLIPFinetuningConfig) -> Iterator[Processes]:
    """Those that train together, all but the first of them silent."""
    if world_size() == 1:
        yield OneProcess()
        return
    claim_local_gpu()
    group = ProcessGroup.from_environment(DeviceManager(config.use_mps, config.device).device)
    assert group is not None
    with group:
        if not group.is_first:
            logging.getLogger("domainclip").setLevel(logging.ERROR)
        yield group


def _unknown_captions(session: ModelSession, splits: DataSplits) -> list[str]:
    """Captions that say nothing to the model's tokenizer, in sentences with an example."""
    captions = [pair.caption for part in (splits.train, splits.val, splits.test) for pair in part]
    found = unknown_captions(captions, Vocabulary(session.processor.tokenizer))
    return [f"Warning: {finding.detail} (such as {finding.examples[0]!r}). {finding.advice}" for finding in found]


def _show_machine(session: ModelSession, processes: Processes, splits: DataSplits, console: Console) -> None:
    console.print(f"Device: {session.device} ({session.device_manager.reason})")
    if processes.world_size > 1:
        console.print(f"Processes: {processes.world_size}, each with its part of every batch")
    console.print(f"Precision: {session.precision.name} ({session.precision.reason})")
    for note in splits.notes:
        console.print(f"Data: {note}", markup=False)


def _show_decisions(run: ResolvedRun, references: ReferenceSets | None, console: Console) -> None:
    for note in references.notes if references is not None else []:
        console.print(f"Data: {note}", markup=False)
    for decision in run.decisions:
        console.print(f"  {decision.key} = {decision.value}  ({decision.reason})", highlight=False, markup=False)


@dataclass
class _EvaluatedRows:
    """The rows with readable images of the splits that are not trained on, and what was ``skipped`` of all splits."""

    val: PairList
    test: PairList
    skipped: list[dict[str, str]]

    @classmethod
    def of(cls, splits: DataSplits, run: ResolvedRun, engine: EmbeddingEngine) -> _EvaluatedRows:
        skipped = skipped_rows({"train": splits.train, "val": splits.val, "test": splits.test})
        if run.recipe.error_analysis:
            expect_shown(engine, splits.test or splits.val)
        val, test = (
            readable_pairs(rows, engine.readable, name, run.recipe.strict, skipped)
            for name, rows in (("val", splits.val), ("test", splits.test))
        )
        return cls(val, test, skipped)

    @property
    def split(self) -> str:
        """The split of before and after."""
        return "test" if len(self.test) else "val"

    @property
    def shown(self) -> PairList:
        """The rows of before and after."""
        return self.test if len(self.test) else self.val


class _FirstProcess:
    """What the first process does beside the training: it evaluates before and after, and reports."""

    def __init__(
        self,
        folder: RunFolder,
        session: ModelSession,
        run: ResolvedRun,
        splits: DataSplits,
        rows: _EvaluatedRows,
        engine: EmbeddingEngine,
        references: ReferenceSets | None,
        console: Console,
        started: float,
        emitter: Emitter,
    ) -> None:
        self.emitter = emitter
        self.started = started  # by time.monotonic
        self.folder, self.session, self.run, self.splits = folder, session, run, splits
        self.rows, self.engine, self.references, self.console = rows, engine, references, console
        self.alignment, self.undrawn = self._alignment()
        self.record = RunRecord(folder, session, run, splits, console)
        self.before: EvaluationResult | None = None
        self.references_before: dict[str, dict[str, float]] = {}

    def evaluate_before(self) -> None:
        """Evaluate the untrained weights; a resumed run reads what the first start found."""
        folder, untrained = self.folder, SharedEmbedder(self.engine)
        record, alignment, references = self.record, self.alignment, self.references
        rows = record.data.digest_of(self.rows.split)

        def before(goes_on: bool) -> EvaluationResult:
            if goes_on and folder.before.exists() and not record.evaluated_otherwise():
                content = read_record(folder.before)
                if content.get("rows") == rows:
                    return EvaluationResult.from_dict(content)
            if record.goes_on:
                record.require_initial_weights("The model has to be evaluated once more as it was before the training")
            found = self._evaluate(untrained, "evaluation_before")
            write_record(folder.before, jsonable({**asdict(found), "rows": rows}))
            return found

        if len(self.rows.shown):
            self.before = record.kept(before)
        if alignment is not None:
            if record.goes_on and not folder.alignment_before.exists():
                record.require_initial_weights("The rows have to be embedded as they were before the training")
            with self.emitter.phase("alignment"):
                record.kept(lambda goes_on: alignment.remember_before(untrained, goes_on, rows))
        if references is not None:
            with self.emitter.phase("references"):
                before_file = folder.references_before
                self.references_before = record.kept(lambda goes_on: references.before(before_file, goes_on))
        record.took(time.monotonic() - self.started)

    def finish(self, result: dict[str, Any]) -> RunReport:
        """Evaluate the saved model and write the report, whose content is returned.

        Args:
            result: What the training came to.
        """
        folder, rows, references, console = self.folder, self.rows, self.references, self.console
        if self.record.goes_on:
            self.record.record_changes()
        skipped = rows.skipped
        skipped += unreadable_rows(self.splits.train, "train", result["skipped_images"])
        skipped += references.skipped if references is not None else []
        if skipped:
            write_json(folder.skipped, skipped)
        embed = SharedEmbedder(self.engine)
        after = self._evaluate(embed, "evaluation_after") if len(rows.shown) else None
        with self.emitter.phase("calibration"):
            calibration = calibrate(self.session, rows.val, rows.test, embed, folder.path, _confidence(result))
        self._record_for_users(calibration)
        of_listeners = [text for text in self.emitter.warnings if text not in result["warnings"]]  # since the training
        warnings = [*self.record.notes, *self.undrawn, *of_listeners]
        parts = dict[str, Any](decisions=self.record.decisions, calibration=calibration)
        if references is not None:
            with self.emitter.phase("references"):
                parts["reference_sets"] = references.report(self.references_before, references.on_test())
            warnings = [*references.warnings, *warnings]
        if self.run.recipe.error_analysis and len(rows.shown):
            parts["error_analysis"] = ERROR_ANALYSIS
        if self.alignment is not None:
            parts["alignment"] = self.alignment.link
        run_time = self.record.earlier_s + result["earlier_time"] + time.monotonic() - self.started
        facts = run_facts(
            self.session, self.splits, rows.split, result, skipped, folder.path, run_time, warnings=warnings, **parts
        )
        with self.emitter.phase("report"):
            report = write_report(folder.path, facts, self.before, after, read_rows(folder.metrics), self._shown)
            plain = plain_use(self.session, self.engine, rows.shown)
            write_text(folder.model / "README.md", model_card(report, plain))
        if self.alignment is not None:
            of_split = [row for row in skipped if row["split"] == rows.split]
            with self.emitter.phase("alignment"):
                self.alignment.write(embed, of_split, self.run.recipe.retrieval_top_k)
            console.print(f"Alignment: {self.alignment.folder / 'report.md'}", markup=False)
        if facts.error_analysis:  # after the reports: an image that cannot be shown must not cost the figures
            title = f"{folder.path.resolve().name}: after fine-tuning, {rows.split} split"
            with self.emitter.phase("error_analysis"):
                write_error_analysis_of(self.session, rows.shown, self.engine, embed, folder.path, title)
        console.print(before_after_table(report))
        console.print(f"Report: {folder.report}\nModel:  {folder.model}", markup=False)
        code = using_code(str(folder.model), bool(self.session.record.classes))
        console.print(f"To use it:\n{code}", markup=False, highlight=False, soft_wrap=True)
        keep = self.run.recipe.keep_checkpoints
        size, spare = folder.tidy(keep)
        rest = "; no checkpoint is kept (keep_checkpoints=0), so that the run cannot go on"
        if keep:
            rest = (
                f", of which {spare / 1e6:,.1f} MB (checkpoints/) are kept only so that the run can go on, such as for "
                f"more epochs (`domainclip train --output {folder.path} --resume num_epochs=N`). Delete checkpoints/ "
                "if it never shall; with keep_checkpoints=0 a run keeps none"
            )
        console.print(f"Folder: {size / 1e6:,.1f} MB{rest}", markup=False, highlight=False)
        return report

    def _record_for_users(self, calibration: dict[str, Any] | None) -> None:
        """Tell those who will use the model the classes of all rows, and the temperature that makes its probabilities
        true of images that it has not seen."""
        found = calibration or {}
        fitted = found.get("fitted_temperature") if not found.get("problem") else None
        rows = [*self.splits.train, *self.rows.val, *self.rows.test]
        self.session.record = ModelRecord(classes_of(rows), fitted)
        self.session.record.write(self.folder.model)

    def _shown(self, path: Path) -> UInt8[np.ndarray, "size size 3"]:
        """An image as the model sees it."""
        return self.engine.pixels([path])[0].permute(1, 2, 0).numpy()

    def _evaluate(self, embed: SharedEmbedder, name: str) -> EvaluationResult:
        """Evaluate the present weights as a phase of this name, which listeners can follow."""
        evaluator = build_evaluator(self.session, self.rows.shown, domain_metrics=True)
        paths, chunk = evaluator.paths, 4 * self.run.evaluation.eval_batch_size  # whole batches: the same figures
        with self.emitter.phase(name, len(paths)) as phase:
            for start in range(0, len(paths), chunk):
                embed.encode_images(paths[start : start + chunk])
                phase.at(min(start + chunk, len(paths)))
            with Progress(None, "Comparing with the texts"):
                return evaluator.evaluate(embed)

    def _alignment(self) -> tuple[RunAlignment | None, list[str]]:
        """The alignment report that is asked for, or why it cannot be made of these rows."""
        if not self.run.recipe.alignment_visualization:
            return None, []
        evaluator = build_evaluator(self.session, self.rows.shown) if len(self.rows.shown) else None
        if evaluator is None or evaluator.retrieval is None:
            reasons = evaluator.notes if evaluator is not None else ["There are no rows to evaluate the model on"]
            return None, [f"alignment_visualization had nothing to draw. {'. '.join(reasons)}"]
        return RunAlignment(self.run, self.rows.shown, self.rows.split, self.folder.path), []


def _confidence(result: Mapping[str, Any]) -> float | None:
    """How sure of itself the model may be that the projections were fitted for, by rows that it had not seen."""
    last, first = result["probe_last"] or {}, result["probe_first"] or {}
    return (last if last.get("kept") else first).get("confidence")
