"""Whether an evaluation speaks of documents, a class hierarchy and a glossary: as the recipe and the domain say."""

from __future__ import annotations

from collections.abc import Sequence

from domainclip.config.settings import DataSettings
from domainclip.data.images.transforms import TextTransform
from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError
from domainclip.evaluation.class_hierarchy import ClassHierarchy
from domainclip.evaluation.semantics import SemanticScores, documents_or_note
from domainclip.evaluation.terminology import PRESENCE_TEMPLATES, TerminologyEvaluator
from domainclip.inference import EmbeddingEngine
from domainclip.resolve import ResolvedInference


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


def document_column(resolved: ResolvedInference) -> str:
    """The column that groups rows: documents where ``document_col`` is set, so that none straddles two splits.

    Raises ``ConfigurationError`` where ``group_col`` names another one.
    """
    column, data = resolved.evaluation.document_col, resolved.data
    if column is not None and data.group_col not in (column, DataSettings.model_fields["group_col"].default):
        raise ConfigurationError(
            f"document_col={column!r} and group_col={data.group_col!r} both name what must not straddle two splits: "
            "give one of the two"
        )
    return column or data.group_col


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
