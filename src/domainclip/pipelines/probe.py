"""Putting together what learns the classes: the projections before the towers, and the towers' own term."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from domainclip.config import FrozenConfig
from domainclip.data.dataset import CLIPDataset
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.transforms import ImageTransform
from domainclip.data.records import ImageTextPair
from domainclip.devices.precision import PrecisionDecision
from domainclip.evaluation.prompts import class_prompts
from domainclip.models import DualEncoder
from domainclip.pipelines.captions import caption_pipeline, class_templates, training_captions
from domainclip.training.probe.probe import Probe
from domainclip.training.regularization.rehearsal import Rehearsal
from domainclip.training.step.class_term import ClassificationTerm


def build_probe(
    encoder: DualEncoder,
    recipe: FrozenConfig,
    loss: nn.Module,
    data: CLIPDataset,
    validation: Sequence[ImageTextPair],
    device: torch.device,
    precision: PrecisionDecision,
    rehearsal: Rehearsal | None = None,
) -> Probe | None:
    """What ``probe_first`` and ``probe_last`` train with, or None. Classes are described as in the evaluation."""
    if not (recipe.probe_first or recipe.probe_last):
        return None
    validation_rows = None
    if len(validation) > 1:
        spec = ImageSpec.from_processor(encoder.processor.image_processor)
        captions = training_captions(recipe, encoder.processor)
        validation_rows = CLIPDataset(
            validation,
            encoder.processor,
            recipe,
            ImageTransform(recipe, False, spec),
            captions["text_transform"],
            images=data.images,
        )
    return Probe(
        encoder,
        loss,
        data,
        recipe,
        recipe.seed,
        device,
        lambda: precision.autocast(device),
        recipe.eval_batch_size,
        validation_rows,
        _sentences(recipe, data, caption_pipeline(recipe, encoder.processor)),
        rehearsal,
        recipe.l2sp_strength,
        recipe.distillation_strength,
    )


def classification_of(
    encoder: DualEncoder, recipe: FrozenConfig, data: CLIPDataset, device: torch.device, precision: PrecisionDecision
) -> ClassificationTerm | None:
    """None where the recipe gives it no weight, or there are no two classes to tell apart."""
    if not recipe.classification_weight:
        return None
    sentences = _sentences(recipe, data, caption_pipeline(recipe, encoder.processor))
    if not sentences:
        return None
    return ClassificationTerm(
        encoder,
        sentences,
        data,
        recipe.classification_weight,
        recipe.seed,
        device,
        lambda: precision.autocast(device),
    )


def _sentences(recipe: FrozenConfig, data: CLIPDataset, pipeline: Callable[[str], str]) -> dict[str, list[str]]:
    labels = sorted({pair.label for pair in data.pairs if pair.label})
    if len(labels) < 2:
        return {}
    prompts = class_prompts(labels, class_templates(recipe), names_of=recipe.domain_config().prompts.names_of)
    return {label: [pipeline(sentence) for sentence in sentences] for label, sentences in prompts.items()}
