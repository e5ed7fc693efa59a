"""A domain's treatment of texts, made ready for one model: the same in training, evaluation and inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.captions.pipeline import CaptionPipeline
from domainclip.data.records import ImageTextPair
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.evaluation.semantics import SemanticScores
from domainclip.metrics.domain_metrics import DomainMetrics
from domainclip.models import EncoderProcessor


def caption_pipeline(config: CLIPFinetuningConfig, processor: EncoderProcessor | None = None) -> CaptionPipeline:
    """What captions and prompts go through before ``processor``'s tokenizer, whose limit it keeps to. Without a
    processor nothing is shortened. Raises ``ConfigurationError`` for a glossary that is missing or wrong."""
    if processor is None:
        return CaptionPipeline(config.caption_steps())
    limit = config.max_sequence_length if config.is_set("max_sequence_length") else processor.max_length
    return CaptionPipeline(config.caption_steps(), processor.count_tokens, min(limit, processor.max_length))


def training_captions(recipe: CLIPFinetuningConfig, processor: EncoderProcessor) -> dict[str, Any]:
    """The keywords of ``CLIPDataset`` that say what becomes of captions in training."""
    pipeline = caption_pipeline(recipe, processor)
    return {
        "text_transform": pipeline,
        "caption_views": (lambda caption: pipeline.views(caption, recipe.seed)) if pipeline.has_views else None,
        "class_names": recipe.domain_config().prompts.names_of,
    }


def class_templates(config: CLIPFinetuningConfig) -> list[str]:
    """The sentences of zero-shot classes: the recipe's where they are set, else the domain's, else the general ones."""
    pack = config.domain_config().prompts.templates
    return config.prompt_templates if config.is_set("prompt_templates") or not pack else pack


def domain_evaluator(
    config: CLIPFinetuningConfig,
    pairs: Sequence[ImageTextPair],
    processor: EncoderProcessor | None = None,
    domain_metrics: DomainMetrics | None = None,
    semantics: SemanticScores | None = None,
) -> DomainEvaluator:
    """The evaluator with the recipe's or the domain's prompts and class names. Captions that the domain makes equal are
    one caption. Raises as ``DomainEvaluator`` does."""
    pipeline = caption_pipeline(config, processor)
    names = config.domain_config().prompts.names_of
    return DomainEvaluator(
        pairs,
        class_templates(config),
        domain_metrics=domain_metrics,
        names_of=names,
        text_transform=pipeline,
        semantics=semantics,
    )
