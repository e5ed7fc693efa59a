"""The use case "fine-tune": a loaded model is trained on image-text pairs and saved."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.dataset import CLIPDataset
from domainclip.data.records import ImageTextPair
from domainclip.devices import DeviceManager
from domainclip.errors import DataError
from domainclip.events import Emitter, InitialValidated, Listener, Noted
from domainclip.inference import EmbeddingEngine, ModelSession
from domainclip.inference.model_record import ModelRecord
from domainclip.losses import build_loss
from domainclip.models.dual_encoder import MAX_LOGIT_SCALE, DualEncoder
from domainclip.models.facts import model_facts
from domainclip.models.lora import require_peft
from domainclip.pipelines.assemble import (
    apply_attention,
    apply_recipe,
    classes_of,
    training_loader,
    training_loss,
    training_parts,
    validation_by,
    write_model,
)
from domainclip.pipelines.auto_resolution import AutoResolution
from domainclip.pipelines.reference_sets import ReferenceSets
from domainclip.pipelines.run_folder import RunFolder
from domainclip.pipelines.validation_loss import ValidationLoss
from domainclip.pipelines.wise_ft import apply_trade_off, check_trade_off, evaluator_of
from domainclip.registry import load_plugins
from domainclip.resolve import ResolvedInference, ResolvedRun, resolve
from domainclip.resolve.facts import data_facts
from domainclip.signals import StopSignals
from domainclip.similarity import BilinearSimilarity
from domainclip.tracking import ConsoleListener
from domainclip.tracking.milestones.rule import RunFacts
from domainclip.tracking.milestones.watch import MilestoneWatch
from domainclip.training import TrainContext, TrainingParts, TrainingResult, Validation, build_trainer
from domainclip.training.distributed import OneProcess, ProcessGroup
from domainclip.training.optim.choice import check_optimizer
from domainclip.training.regularization.initial_weights import initial_weights
from domainclip.training.validation import load_best
from domainclip.words import counted

Processes = ProcessGroup | OneProcess


def load_for_training(resolved: ResolvedInference, console: Console) -> ModelSession:
    """Load the recipe's model, once it is known that the recipe can be trained on this machine.

    Args:
        resolved: The recipe with its domain.
        console: Where it is said which domain a model brings along.

    Returns:
        The session.

    Raises:
        DeviceError: The device cannot be used.
        ModelLoadError: The model cannot be had.
        ConfigurationError: The loss type is unknown, or the precision or the optimizer is refused.
        MissingExtraError: The recipe needs a package that is not installed.
    """
    recipe = resolved.recipe
    load_plugins(recipe.plugins)
    build_loss(resolved.objective)
    if recipe.lora_r is not None:
        require_peft()
    manager = DeviceManager(recipe.use_mps, recipe.device)
    check_optimizer(recipe.optimizer, manager.device)
    return ModelSession.from_pretrained(resolved, console, manager)


def resolve_run(
    config: CLIPFinetuningConfig,
    session: ModelSession,
    pairs: Sequence[ImageTextPair],
    processes: Processes,
    resume_from: Path | None = None,
    auto_resolution: AutoResolution | None = None,
    validation_rows: int = 0,
    test_rows: int = 0,
) -> ResolvedRun:
    """Resolve the recipe for a model and training rows; from then on the session prepares images and texts by it.

    Args:
        config: The recipe as the user gave it.
        session: The loaded model.
        pairs: The training rows.
        processes: Those that train together: the first one's choices hold.
        resume_from: The folder of a run that goes on, where ``auto_resolution`` finds what it chose at first.
        auto_resolution: Remembers a choice for whoever resolves several times.
        validation_rows: Rows of the validation split.
        test_rows: Rows of the test split.

    Returns:
        The resolved run.

    Raises:
        DataError: The rows offer nothing to contrast.
        ConfigurationError: A value does not fit the model or the rows.
    """
    if len(pairs) < 2:
        raise DataError(
            f"No valid image-text pairs to contrast: {counted(len(pairs), 'row')} for training, 2 are needed"
        )
    choose = (auto_resolution or AutoResolution()).chooser(config, session, pairs, resume_from)
    facts = model_facts(session.encoder), data_facts(pairs, processes.world_size, validation_rows, test_rows)
    # What was measured may have come out differently in another process.
    run = processes.broadcast_object(resolve(config, *facts, domain=session.domain, choose_resolution=choose))
    by_label = run.recipe.positives == "label"
    if len({(by_label and pair.label) or pair.caption for pair in pairs}) == 1:
        raise DataError(
            f"Every training row has the same {'label' if by_label else 'caption'}: there is nothing to tell "
            "apart. Add rows of other kinds"
        )
    session.resolved = run
    return run


def fine_tune(
    session: ModelSession,
    run: ResolvedRun,
    data: CLIPDataset,
    val: Sequence[ImageTextPair],
    folder: RunFolder,
    *,
    resume: bool = False,
    engine: EmbeddingEngine | None = None,
    listeners: Sequence[Listener] = (),
    emitter: Emitter | None = None,
    reference_sets: ReferenceSets | None = None,
    processes: Processes | None = None,
    console: Console | None = None,
    accept_changed_data: bool = False,
) -> dict[str, Any]:
    """Train, keep the weights of the best validation, and save them, or with ``wise_ft`` weights between those and the
    initial ones, to ``folder/model``.

    Args:
        session: The loaded model; afterwards it has the saved weights.
        run: The resolved recipe.
        data: The training rows.
        val: The validation rows; without any the last weights are kept.
        folder: Of the run.
        resume: Go on from the newest checkpoint in the folder.
        engine: Embeds the validation rows; a new one, if left out.
        listeners: Called with each event of the training, in the first of several processes.
        emitter: That of the run which the training is of, with listeners that are there already.
        reference_sets: The sets of ``retention_data``. The first process evaluates them, all rehearse their rows.
        processes: Those that train together.
        console: Where the course is shown.
        accept_changed_data: Whether a run may go on with other training rows.

    Returns:
        ``train_loss`` (mean over the steps), ``training_time`` (seconds), ``steps``, ``samples_per_second``, ``best``,
        ``model_path``, ``trade_off``, ``warnings`` and more.

    Raises:
        ConfigurationError: The recipe asks for what the model or the rows do not allow.
        CheckpointError: A checkpoint is of another run, or the model cannot be written.
        TrainingDivergedError: The loss or the gradient is no number any more.
        Interrupted: A signal has stopped the training, which was saved.
    """
    processes, console = processes or OneProcess(), console or Console(stderr=True)
    encoder, recipe, device = session.encoder, run.recipe, session.device
    folder.path.mkdir(parents=True, exist_ok=True)
    check_trade_off(recipe, len(val))
    evaluator = evaluator_of(session, val, "validation") if val else None
    evaluated = reference_sets if processes.is_first else None  # the others rehearse, and validate nothing
    encoder.remove_adapters()  # of a run that did not end
    compared = run.probe.compares_towers and len(val) > 0
    start = initial_weights(encoder, run.references, session.as_loaded, compared)
    if start is not None and start.encoder is not None:
        console.print(f"distillation_strength: a frozen copy is kept, {start.copy_bytes / 2**20:.0f} MiB")
    apply_recipe(encoder, run, console)
    apply_attention(encoder, run.memory, run.data, device, session.precision, console)
    loader = training_loader(data, run, device)
    loss = training_loss(encoder, run, loader, device)
    engine = engine or session.engine()
    engine.expect([pair.image_path for pair in val])
    validate = initial = None
    if evaluator is not None:
        own_loss = ValidationLoss.of(loss, encoder, run, val, engine.text_transform)
        validate = validation_by(evaluator, engine, evaluated, own_loss)
        initial = validation_by(evaluator, engine, None, own_loss)
    if emitter is None:
        emitter = Emitter()
        emitter.add(ConsoleListener(console))
    watch = MilestoneWatch(_facts_for_milestones(encoder, run, folder), emitter.emit)
    kept: dict[str, Any] = {}
    if processes.is_first:
        kept = {"files": folder.files(emitter.warn), "milestones": watch}
        emitter.add(kept["files"], first=True)
        emitter.add(watch)
        for listener in listeners:
            emitter.add(listener)
    context = TrainContext(folder.path, processes=processes, emitter=emitter, listeners=kept)
    with _learned_metric(loss, engine, *([evaluated.engine] if evaluated else ())) as metric:
        parts = training_parts(session, run, data, val, loss, start, validate, reference_sets, engine.text_map)
        parts = replace(parts, accept_changed_data=accept_changed_data)
        torch.manual_seed(recipe.seed + processes.rank)  # their own dropout
        if processes.is_first and not (resume and folder.is_trained):
            if initial is not None:
                _tell_initial(context, initial)
            if evaluated is not None:
                _tell_references(context, evaluated, 0, "val")
        session.as_loaded = False
        try:
            result = _train(session, run, loss, loader, context, parts, StopSignals(console.print), resume)
        finally:
            # The optimizer and the decoded images: gone now, not whenever Python next looks for cycles, so that many
            # runs in one process need the memory of one.
            del loader, parts
            gc.collect()
    encoder.merge_adapters()
    if result.best is not None:
        load_best(folder.best, context.state.best_files, encoder, loss)
    if metric is not None:  # from here on the plain cosine says what the learned metric said
        encoder.absorb_text_map(metric)
    trade_off = processes.on_first(lambda: apply_trade_off(session, start, data.pairs, val, engine, evaluated, console))
    if evaluated is not None:
        _tell_references(context, evaluated, result.steps, "saved")
    session.record = ModelRecord(classes_of([*data.pairs, *val]))
    processes.on_first(lambda: write_model(session, folder.path))
    encoder.eval()
    skipped = {row.image_path: row.reason for row in data.skipped} | result.skipped_images
    return asdict(result) | {
        "model_path": str(folder.model),
        "trade_off": trade_off,
        "skipped_images": skipped,
        "milestones": [asdict(milestone) for milestone in watch.reached],
        "warnings": [*result.warnings, *watch.warnings],
    }


def _train(
    session: ModelSession,
    run: ResolvedRun,
    loss: nn.Module,
    loader: DataLoader,
    context: TrainContext,
    parts: TrainingParts,
    stop: StopSignals,
    resume: bool,
) -> TrainingResult:
    where = (session.device, session.precision)
    trainer = build_trainer(context, session.encoder, loss, loader, run, *where, parts, stop)
    try:
        return trainer.train(resume=resume)
    finally:
        del trainer, loader, parts  # a traceback would keep them


def _facts_for_milestones(encoder: DualEncoder, run: ResolvedRun, folder: RunFolder) -> RunFacts:
    return RunFacts(
        folder=folder.path,
        warmup_steps=run.optim.warmup_steps,
        largest_scale=None if encoder.is_siglip else math.exp(MAX_LOGIT_SCALE),
        scale_trained=encoder.logit_scale.requires_grad and not run.objective.temperature_scheduling,
        max_forgetting=run.references.max_forgetting,
    )


def _tell_initial(context: TrainContext, validate: Callable[[], Validation]) -> None:
    with context.emitter.phase("validation"):
        found = validate()
    context.emitter.emit(
        InitialValidated(
            metrics=dict(found.metrics),
            primary=found.primary,
            value=found.value,
            greater_is_better=found.greater_is_better,
            standard_error=found.standard_error,
        )
    )


def _tell_references(context: TrainContext, sets: ReferenceSets, step: int, prefix: str) -> None:
    with context.emitter.phase("references"):
        scores = {f"{prefix}_{name}": value for name, value in sets.during().items()}
    context.emitter.emit(Noted(name="references", step=step, values=scores))


@contextmanager
def _learned_metric(loss: nn.Module, *engines: EmbeddingEngine) -> Iterator[Tensor | None]:
    """The weights of the metric that ``loss`` learns, if it learns one; meanwhile the engines embed texts by it."""
    metric = next((module for module in loss.modules() if isinstance(module, BilinearSimilarity)), None)
    for engine in engines:
        engine.text_map = metric.map_texts if metric is not None else None
    try:
        yield metric.weight if metric is not None else None
    finally:
        for engine in engines:
            engine.text_map = None
