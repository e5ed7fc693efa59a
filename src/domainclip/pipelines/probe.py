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
from domainclip.pipelines.captions import caption_chain, class_templates, training_captions
from domainclip.training.probe.probe import HeadFirst
from domainclip.training.regularization.rehearsal import Rehearsal
from domainclip.training.step.class_term import ClassificationTerm


def head_first_of(
    encoder: DualEncoder,
    recipe: FrozenConfig,
    loss: nn.Module,
    data: CLIPDataset,
    validation: Sequence[ImageTextPair],
    device: torch.device,
    precision: PrecisionDecision,
    rehearsal: Rehearsal | None = None,
) -> HeadFirst | None:
    """What ``head_first`` and ``head_last`` train with, or None. Classes are described as in the evaluation."""
    if not (recipe.head_first or recipe.head_last):
        return None
    judged = None
    if len(validation) > 1:
        spec = ImageSpec.from_processor(encoder.processor.image_processor)
        captions = training_captions(recipe, encoder.processor)
        judged = CLIPDataset(
            validation,
            encoder.processor,
            recipe,
            ImageTransform(recipe, False, spec),
            captions["text_transform"],
            cache=False,
        )
    return HeadFirst(
        encoder,
        loss,
        data,
        recipe,
        recipe.seed,
        device,
        lambda: precision.autocast(device),
        recipe.eval_batch_size,
        judged,
        _sentences(recipe, data, caption_chain(recipe, encoder.processor)),
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
    sentences = _sentences(recipe, data, caption_chain(recipe, encoder.processor))
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


def _sentences(recipe: FrozenConfig, data: CLIPDataset, chain: Callable[[str], str]) -> dict[str, list[str]]:
    labels = sorted({pair.label for pair in data.pairs if pair.label})
    if len(labels) < 2:
        return {}
    prompts = class_prompts(labels, class_templates(recipe), names_of=recipe.domain_config().prompts.names_of)
    return {label: [chain(sentence) for sentence in sentences] for label, sentences in prompts.items()}
