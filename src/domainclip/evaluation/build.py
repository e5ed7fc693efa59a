"""Evaluators put together as the recipe and the domain say."""

from __future__ import annotations

import math
from collections.abc import Sequence

from domainclip.config.domain_metric_settings import DomainMetricSettings
from domainclip.data.images.transforms import TextTransform
from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError
from domainclip.evaluation.class_hierarchy import ClassHierarchy
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.evaluation.semantics import SemanticScores, documents_or_note
from domainclip.evaluation.terminology import PRESENCE_TEMPLATES, TerminologyEvaluator
from domainclip.inference import EmbeddingEngine, ModelSession
from domainclip.inference.session import caption_pipeline
from domainclip.metrics.domain_metrics import DomainMetrics
from domainclip.models import DualEncoder, EncoderProcessor
from domainclip.resolve import ResolvedInference


def build_evaluator(
    session: ModelSession, pairs: Sequence[ImageTextPair], *, domain_metrics: bool = False, intervals: bool = True
) -> DomainEvaluator:
    """The evaluator of these rows with the session's recipe, which says prompts and metrics.

    Args:
        session: The model that is evaluated, with its recipe.
        pairs: The rows.
        domain_metrics: Whether it also gives the metrics of the domain, and those of documents, a class hierarchy and
            the domain's terminology where the recipe or the domain names them.
        intervals: Whether these have intervals.

    Returns:
        An evaluator whose probabilities are those of the model's temperature at the time of an evaluation.

    Raises:
        DataError: The rows allow no evaluation.
        ConfigurationError: Settings do not fit the classes.
    """
    resolved, figures, semantics = session.resolved, None, None
    if domain_metrics:
        figures = build_domain_metrics(resolved, session.encoder, intervals=intervals)
        semantics = semantic_scores(resolved, pairs, session.engine(), intervals=intervals)
    return domain_evaluator(resolved, pairs, session.processor, figures, semantics)


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


def build_domain_metrics(resolved: ResolvedInference, encoder: DualEncoder, *, intervals: bool = True) -> DomainMetrics:
    """The metrics of the domain that ``evaluation_metrics`` names, or of the recipe's own.

    What the recipe leaves unset is as the domain says. The probabilities are those of the model's temperature at the
    time of an evaluation. Raises ``ConfigurationError`` for an unknown domain.
    """
    settings = resolved.evaluation.group(DomainMetricSettings)
    if not intervals:
        settings.bootstrap_resamples = 0
    named = settings.evaluation_metrics
    return DomainMetrics(
        resolved.domain.family if named == "auto" else named,
        lambda: math.exp(-float(encoder.logit_scale.detach())),
        settings,
        sigmoid=encoder.is_siglip,
        seed=resolved.data.seed,
    )


def semantic_scores(
    resolved: ResolvedInference, pairs: Sequence[ImageTextPair], engine: EmbeddingEngine, *, intervals: bool = True
) -> SemanticScores | None:
    """None where nothing asks for any. ``engine`` encodes the terms and is not used for anything else afterwards.

    Raises ``ConfigurationError`` for a class hierarchy that is wrong or lacks a class, a ``document_col`` without a
    value in any row, and ``terminology`` without a glossary.
    """
    settings = resolved.evaluation
    notes: list[str] = []
    tree = documents = terminology = None
    if settings.class_hierarchy is not None:
        given = settings.class_hierarchy
        tree = ClassHierarchy.from_file(given) if isinstance(given, str) else ClassHierarchy.from_nested(given)
    if settings.document_col is not None:
        if all(pair.group is None for pair in pairs):
            raise ConfigurationError(
                f"document_col={settings.document_col!r} names no document in any of {len(pairs)} rows: check the name "
                "of the column"
            )
        documents, notes = documents_or_note(pairs)
    if settings.terminology is not False:
        terminology = _terminology(resolved, pairs, asked=settings.terminology is True)
    if tree is None and documents is None and terminology is None and not notes:
        return None
    engine.text_transform = TextTransform()
    resamples = settings.bootstrap_resamples if intervals else 0
    return SemanticScores(tree, documents, terminology, engine.encode_texts, notes, resamples)


def _terminology(
    resolved: ResolvedInference, pairs: Sequence[ImageTextPair], asked: bool
) -> TerminologyEvaluator | None:
    glossary = resolved.domain.texts.load()
    if glossary is None:
        if asked:
            raise ConfigurationError(
                f"terminology=true reads a glossary, and the domain {resolved.data.domain!r} has none: name one in the "
                "domain's texts.glossary"
            )
        return None
    if not (glossary.synonyms or glossary.abbreviations or glossary.negation_pairs):
        return None
    prompts = resolved.domain.prompts
    labels = {pair.label for pair in pairs if pair.label is not None}
    return TerminologyEvaluator(
        glossary,
        pairs,
        prompts.presence_templates or PRESENCE_TEMPLATES,
        {label: prompts.names_of(label) for label in labels},
    )
