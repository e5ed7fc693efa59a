"""A domain's treatment of texts, made ready for one model: the same in training, evaluation and inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domainclip.data.captions.pipeline import CaptionPipeline
from domainclip.data.records import ImageTextPair
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.evaluation.semantics import SemanticScores
from domainclip.metrics.domain_metrics import DomainMetrics
from domainclip.models import EncoderProcessor
from domainclip.resolve import ResolvedInference


def caption_pipeline(resolved: ResolvedInference, processor: EncoderProcessor | None = None) -> CaptionPipeline:
    """What captions and prompts go through before ``processor``'s tokenizer, whose limit it keeps to. Without a
    processor nothing is shortened. Raises ``ConfigurationError`` for a glossary that is missing or wrong."""
    steps, data = resolved.domain.texts, resolved.data
    if processor is None:
        return CaptionPipeline(steps)
    limit = data.max_sequence_length if data.is_set("max_sequence_length") else processor.max_length
    return CaptionPipeline(steps, processor.count_tokens, min(limit, processor.max_length))


def training_captions(resolved: ResolvedInference, processor: EncoderProcessor) -> dict[str, Any]:
    """The keywords of ``CLIPDataset`` that say what becomes of captions in training."""
    pipeline, seed = caption_pipeline(resolved, processor), resolved.data.seed
    return {
        "text_transform": pipeline,
        "caption_views": (lambda caption: pipeline.views(caption, seed)) if pipeline.has_views else None,
        "class_names": resolved.domain.prompts.names_of,
    }


def domain_evaluator(
    resolved: ResolvedInference,
    pairs: Sequence[ImageTextPair],
    processor: EncoderProcessor | None = None,
    domain_metrics: DomainMetrics | None = None,
    semantics: SemanticScores | None = None,
) -> DomainEvaluator:
    """The evaluator with the recipe's or the domain's prompts and class names. Captions that the domain makes equal are
    one caption. Raises as ``DomainEvaluator`` does."""
    pipeline = caption_pipeline(resolved, processor)
    return DomainEvaluator(
        pairs,
        resolved.evaluation.prompt_templates,
        domain_metrics=domain_metrics,
        names_of=resolved.domain.prompts.names_of,
        text_transform=pipeline,
        semantics=semantics,
    )
