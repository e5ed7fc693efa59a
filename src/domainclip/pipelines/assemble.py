"""The parts of a training, built from a resolved recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader

from domainclip.config import DataSettings, MemorySettings
from domainclip.data.batches import create_training_loader
from domainclip.data.dataset import CLIPDataset
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.transforms import ImageTransform
from domainclip.data.records import ImageTextPair
from domainclip.data.step_plan import StepPlan
from domainclip.devices.memory import GB, read_memory
from domainclip.devices.precision import PrecisionDecision
from domainclip.errors import CheckpointError
from domainclip.evaluation.evaluators import DomainEvaluator, known_labels
from domainclip.evaluation.shared import SharedEmbedder
from domainclip.evaluation.validation_details import details_of, geometry
from domainclip.inference import EmbeddingEngine, ModelSession
from domainclip.inference.prompts import class_prompts
from domainclip.inference.session import caption_pipeline
from domainclip.losses import build_loss
from domainclip.models import DualEncoder, EncoderProcessor
from domainclip.models.attention import decide_attention
from domainclip.models.checkpoint_blocks import checkpoint_blocks
from domainclip.models.lora import attach_lora
from domainclip.pipelines.reference_sets import ReferenceSets
from domainclip.pipelines.validation_loss import LOSS, ValidationLoss
from domainclip.resolve import ResolvedInference, ResolvedRun, contrastive_batch
from domainclip.retrieval import hard_negatives
from domainclip.training import TrainingParts, Validation
from domainclip.training.checkpoint import recover_directory
from domainclip.training.probe.probe import Probe
from domainclip.training.regularization.initial_weights import InitialWeights
from domainclip.training.regularization.rehearsal import Rehearsal
from domainclip.training.step.class_term import ClassificationTerm
from domainclip.training.step.train_step import FurtherTerms
from domainclip.training.step.views import view_resolutions

ATTENTION_MEMORY = 0.5
"""Of all memory, not of what is free now: a resumed run must decide as the first one did, or it rounds otherwise."""


def training_captions(resolved: ResolvedInference, processor: EncoderProcessor) -> dict[str, Any]:
    """What becomes of captions in training.

    Args:
        resolved: The recipe with its domain, which says the steps.
        processor: Whose tokenizer's limit is kept to.

    Returns:
        Keywords of ``CLIPDataset``: ``text_transform``, ``caption_views`` and ``class_names``.
    """
    pipeline, seed = caption_pipeline(resolved, processor), resolved.data.seed
    return {
        "text_transform": pipeline,
        "caption_views": (lambda caption: pipeline.views(caption, seed)) if pipeline.has_views else None,
        "class_names": resolved.domain.prompts.names_of,
    }


def training_data(pairs: Sequence[ImageTextPair], run: ResolvedRun, session: ModelSession) -> CLIPDataset:
    """The training rows, augmented as the resolved recipe says.

    Args:
        pairs: The training rows.
        run: The resolved recipe with its domain and resolutions.
        session: The loaded model, whose processor and store of images are used.

    Returns:
        A data set large enough in its views for the largest resolution of the run.
    """
    recipe, processor = run.recipe, session.processor
    spec = ImageSpec.from_processor(processor.image_processor)
    transform = ImageTransform(
        recipe,
        recipe.augment_images,
        spec,
        run.resolution.largest_resolution(recipe.image_resolution),
        run.domain.images,
    )
    captions = training_captions(run, processor)
    return CLIPDataset(pairs, processor, recipe, transform, images=session.images, **captions)


def announce_images(
    run: ResolvedRun,
    session: ModelSession,
    engine: EmbeddingEngine,
    data: CLIPDataset,
    validation: Sequence[ImageTextPair],
) -> None:
    """Announce what later parts of the run will ask the store for, before anybody reads a file: each is decoded once.

    Args:
        run: The resolved run.
        session: The loaded model.
        engine: Embeds images as evaluation shows them.
        data: The training rows.
        validation: The validation rows.
    """
    if run.data.hard_negative_batch_fraction > 0:
        engine.expect([pair.image_path for pair in data.pairs], shared=run.data.num_workers > 0)
    if run.probe.probe_first or run.probe.probe_last:
        data.expect_clean()
        view = evaluated_view(run, session.processor)
        bytes_each = 3 * view.resolution**2
        session.images.expect([pair.image_path for pair in validation], view.preparation(), bytes_each)


def evaluated_view(run: ResolvedRun, processor: EncoderProcessor) -> ImageTransform:
    """How evaluation shows images.

    Args:
        run: The resolved recipe.
        processor: Of the model.

    Returns:
        The transform, without augmentation.
    """
    spec = ImageSpec.from_processor(processor.image_processor)
    return ImageTransform(run.recipe, False, spec, steps=run.domain.images)


def apply_recipe(encoder: DualEncoder, run: ResolvedRun, console: Console) -> None:
    """Lock, set the resolution, the temperature and what is recomputed, and attach adapters.

    Args:
        encoder: The dual encoder, changed in place; it must have no adapters yet.
        run: The resolved recipe.
        console: Where it is said what adapters were attached and which tower cannot recompute.
    """
    optim, resolution, checkpointing = run.optim, run.data.image_resolution, bool(run.memory.gradient_checkpointing)
    if optim.lock_image:
        encoder.lock("image")
    if optim.lock_text:
        encoder.lock("text")
    encoder.frozen_batch_norm = bool(run.model.freeze_batch_norm)
    if resolution != encoder.native_resolution:  # the saved model must ask for what it was trained on
        encoder.processor.set_resolution(resolution)
    encoder.set_temperature(run.objective.temperature, trainable=run.objective.learnable_temp)
    if optim.lora_r is not None:
        console.print(attach_lora(encoder, optim, run.data.seed).describe(), highlight=False)
    unsupported = checkpoint_blocks(encoder.model, checkpointing)
    for tower in unsupported if checkpointing else []:
        console.print(f"gradient_checkpointing: the {tower} tower does not support it and keeps everything")


def apply_attention(
    encoder: DualEncoder,
    memory: MemorySettings,
    data: DataSettings,
    device: torch.device,
    precision: PrecisionDecision,
    console: Console,
) -> None:
    """Set both towers' attention for training and say why, where it is not the usual fused one.

    Args:
        encoder: The dual encoder, changed in place.
        memory: Says the micro-batch, and which attention is wanted.
        data: Says resolution and text length.
        device: Where it trains.
        precision: What training computes in.
        console: Where the reason is said.
    """
    micro_batch = memory.mini_batch_size or memory.batch_size
    assert micro_batch is not None  # a resolved recipe
    decisions = decide_attention(
        encoder,
        memory,
        batch=micro_batch,
        device_type=device.type,
        training=True,
        precision=precision.name,
        memory_bytes=int(float(read_memory(device)["total_gb"] or 0) * GB * ATTENTION_MEMORY),
        resolution=data.image_resolution,
        text_length=data.max_sequence_length,
    )
    encoder.set_attention(**decisions)
    for side, decision in decisions.items():
        if decision.name != "sdpa":
            console.print(f"Attention of the {side} tower: {decision.name} ({decision.reason})", markup=False)


def training_loader(data: CLIPDataset, run: ResolvedRun, device: torch.device) -> DataLoader:
    """The loader of the training batches.

    Args:
        data: The training rows.
        run: The resolved recipe.
        device: Where the model trains; for MPS texts are padded to multiples of 16 tokens.

    Returns:
        A loader of batches of pairs that are contrasted with each other.
    """
    # MPS keeps memory for every shape it has seen: a few lengths only.
    multiple = 16 if device.type == "mps" else 1
    plan = StepPlan.from_settings(
        run.optim,
        run.batch,
        run.resolution,
        seed=run.data.seed,
        rows=len(data),
        batch_size=contrastive_batch(run.memory),
        full_resolution=data.image_transform.resolution,
    )
    return create_training_loader(data, run.data, plan, pad_to_multiple=multiple)


def training_loss(encoder: DualEncoder, run: ResolvedRun, loader: DataLoader, device: torch.device) -> nn.Module:
    """The objective.

    Args:
        encoder: The dual encoder, which says the dimension of embeddings and what resolutions it takes.
        run: The resolved recipe with its objective.
        loader: The training batches, whose plan says the resolutions.
        device: Where the model trains.

    Returns:
        A module on ``device``.

    Raises:
        ConfigurationError: The image tower does not take the resolutions that the objective asks for.
    """
    loss = build_loss(run.objective, encoder.embedding_dim).to(device)
    if scales := getattr(loss, "resolution_scales", None):
        for resolution in loader.batch_sampler.plan.resolutions:  # type: ignore[union-attr]
            view_resolutions(encoder, resolution, scales)  # an error now, not at the first step
    return loss


def training_parts(
    session: ModelSession,
    run: ResolvedRun,
    data: CLIPDataset,
    val: Sequence[ImageTextPair],
    loss: nn.Module,
    start: InitialWeights | None,
    validate: Callable[[], Validation] | None,
    reference_sets: ReferenceSets | None,
    text_map: Callable[[Tensor], Tensor] | None,
) -> TrainingParts:
    """What this training has besides the model, the objective and the rows.

    Args:
        session: The loaded model, made ready for the recipe.
        run: The resolved recipe.
        data: The training rows.
        val: The validation rows.
        loss: The objective.
        start: What is remembered of the initial weights.
        validate: Validates the present weights.
        reference_sets: Whose rows are rehearsed.
        text_map: What is done to text embeddings before they are compared: a metric that is being learned.

    Returns:
        Validation, further terms of the loss, probes and the search for hard negatives, as far as they are wanted.
    """
    encoder, where = session.encoder, (session.device, session.precision)
    autocast = partial(session.precision.autocast, session.device)
    find_hard_negatives = None
    if run.data.hard_negative_batch_fraction > 0:
        fast = session.engine(autocast=autocast)
        fast.text_map = text_map
        find_hard_negatives = hard_negative_finder(data, run.data, fast)
    rehearsal = (
        reference_sets.rehearsed(encoder, run.references, run.data, autocast) if reference_sets is not None else None
    )
    probe = build_probe(session, run, loss, data, val, rehearsal)
    return TrainingParts(
        evaluate=validate,
        terms=FurtherTerms(start, classification_of(encoder, run, data, *where), rehearsal),
        probe=probe,
        find_hard_negatives=find_hard_negatives,
    )


def build_probe(
    session: ModelSession,
    run: ResolvedRun,
    loss: nn.Module,
    data: CLIPDataset,
    validation: Sequence[ImageTextPair],
    rehearsal: Rehearsal | None = None,
) -> Probe | None:
    """What ``probe_first`` and ``probe_last`` fit the projections with. Classes are described as in the evaluation.

    Args:
        session: The loaded model, made ready for the recipe.
        run: The resolved recipe.
        loss: The objective.
        data: The training rows.
        validation: Rows that the models are compared on.
        rehearsal: Rows of reference sets that are rehearsed.

    Returns:
        The probe, or None where the recipe wants neither.
    """
    settings, encoder, processor = run.probe, session.encoder, session.processor
    if not (settings.probe_first or settings.probe_last):
        return None
    held_out = None
    if len(validation):
        view, captions = evaluated_view(run, processor), training_captions(run, processor)["text_transform"]
        held_out = CLIPDataset(validation, processor, run.recipe, view, captions, images=data.images)
    return Probe(
        encoder,
        loss,
        data,
        held_out,
        settings,
        run.data.seed,
        session.device,
        partial(session.precision.autocast, session.device),
        run.evaluation.eval_batch_size,
        _sentences(run, data, caption_pipeline(run, encoder.processor)),
        rehearsal,
        run.references.l2sp_strength,
        run.references.distillation_strength,
    )


def classification_of(
    encoder: DualEncoder, resolved: ResolvedRun, data: CLIPDataset, device: torch.device, precision: PrecisionDecision
) -> ClassificationTerm | None:
    """The classification term of the loss.

    Args:
        encoder: The dual encoder.
        resolved: The resolved recipe, which gives the term its weight.
        data: The training rows with their labels.
        device: Where the model is.
        precision: What training computes in.

    Returns:
        The term; None where the recipe gives it no weight, or there are no two classes to tell apart.
    """
    weight = resolved.probe.classification_weight
    if not weight:
        return None
    sentences = _sentences(resolved, data, caption_pipeline(resolved, encoder.processor))
    if not sentences:
        return None
    return ClassificationTerm(
        encoder, sentences, data, weight, resolved.data.seed, device, lambda: precision.autocast(device)
    )


def _sentences(resolved: ResolvedRun, data: CLIPDataset, pipeline: Callable[[str], str]) -> dict[str, list[str]]:
    labels = sorted({pair.label for pair in data.pairs if pair.label})
    if len(labels) < 2:
        return {}
    prompts = class_prompts(labels, resolved.evaluation.prompt_templates, names_of=resolved.domain.prompts.names_of)
    return {label: [pipeline(sentence) for sentence in sentences] for label, sentences in prompts.items()}


def hard_negative_finder(data: CLIPDataset, settings: DataSettings, engine: EmbeddingEngine) -> Callable[[], Tensor]:
    """How the hardest negatives of the training rows are found with the present weights.

    Args:
        data: The training rows, which are embedded without augmentation.
        settings: Of the resolved recipe: ``hard_negative_neighbours`` (k), ``seed``, and whether others read as well.
        engine: Embeds the rows.

    Returns:
        A callable that embeds every training row and returns its hardest rows, ``[rows, k]``, -1 where there are fewer.
        Images that cannot be read take no part.
    """
    paths = [pair.image_path for pair in data.pairs]
    captions = [pair.caption for pair in data.pairs]
    engine.expect(paths, shared=settings.num_workers > 0)
    usable: list[int] = []

    def find() -> Tensor:
        if not usable:
            usable.extend(row for row, problem in enumerate(engine.readable(paths)) if not problem)
        found = engine.encode_images([paths[row] for row in usable])
        images = torch.zeros(len(paths), found.shape[1])
        images[torch.tensor(usable)] = found
        return hard_negatives(
            images, engine.encode_texts(captions), data.group_ids, settings.hard_negative_neighbours, seed=settings.seed
        )

    return find


def validation_by(
    evaluator: DomainEvaluator,
    engine: EmbeddingEngine,
    reference_sets: ReferenceSets | None = None,
    loss: ValidationLoss | None = None,
) -> Callable[[], Validation]:
    """How ``Trainer`` validates.

    Args:
        evaluator: Evaluates the validation rows.
        engine: Embeds them.
        reference_sets: Adds what is left of the general knowledge, which chooses no checkpoint.
        loss: Measures the training's own loss on the validation rows.

    Returns:
        A callable for ``Trainer`` that validates the present weights.
    """

    def validate() -> Validation:
        embed = SharedEmbedder(engine)
        result = evaluator.evaluate(embed)
        metrics, primary = result.metrics | geometry(evaluator, embed), evaluator.primary_metric
        if loss is not None and engine.text_map is None:  # a learned comparison would be applied twice
            metrics = metrics | {LOSS: loss(embed)}
        if reference_sets is not None:
            metrics = metrics | reference_sets.during()
        found = details_of(evaluator, embed, result)
        return Validation(metrics, primary, evaluator.greater_is_better, result.records[primary].standard_error, found)

    return validate


def classes_of(rows: Sequence[ImageTextPair]) -> tuple[str, ...]:
    """The classes that a model is to tell apart, as it saves them for its users.

    Args:
        rows: Of all splits.

    Returns:
        Their names in order; none where rows have no label or several each.
    """
    return () if any(row.labels for row in rows) else tuple(known_labels(rows))


def write_model(session: ModelSession, folder: Path) -> None:
    """Write ``folder/model`` with its domain and classes, whole or as it was.

    Args:
        session: The trained model.
        folder: Of the run.

    Raises:
        CheckpointError: The model cannot be written.
    """
    recover_directory(folder / "model")
    try:
        session.save(folder / "model")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"The trained model could not be written to {folder / 'model'}: {error}. Its last checkpoint is in "
            f"{folder / 'checkpoints'}: free some space and resume"
        ) from error
