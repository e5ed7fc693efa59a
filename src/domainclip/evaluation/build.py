"""Evaluators put together as the recipe and the domain say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from domainclip.data.records import ImageTextPair
from domainclip.errors import DataError
from domainclip.evaluation.class_hierarchy import ClassHierarchyEvaluator
from domainclip.evaluation.document_retrieval import DocumentRetrievalEvaluator
from domainclip.evaluation.domain_metrics import DomainMetricsEvaluator
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.evaluation.registry import EVALUATORS, EvaluationContext
from domainclip.evaluation.terminology import TerminologyEvaluator
from domainclip.inference import ModelSession
from domainclip.inference.session import caption_pipeline
from domainclip.metrics.metric import METRICS
from domainclip.resolve import ResolvedInference

_OF_A_REPORT = (
    DomainMetricsEvaluator.name,
    ClassHierarchyEvaluator.name,
    DocumentRetrievalEvaluator.name,
    TerminologyEvaluator.name,
)
"""The evaluators of a report, in its order, beside classification and retrieval. A validation during training has those
that the recipe names, and the one whose metric is the primary one."""
_SECTIONS = {"domain": "domain_metrics", "hierarchy": "class_hierarchy"}
"""Sections of metrics whose evaluator is called otherwise."""


def build_evaluator(
    session: ModelSession,
    pairs: Sequence[ImageTextPair],
    *,
    domain_metrics: bool = False,
    intervals: bool = True,
    asked: ResolvedInference | None = None,
) -> DomainEvaluator:
    """The evaluator of these rows with the session's recipe, which says prompts and metrics.

    Args:
        session: The model that is evaluated, with its recipe.
        pairs: The rows.
        domain_metrics: Whether it also gives the metrics of the domain, and those of documents, a class hierarchy and
            the domain's terminology where the recipe or the domain names them.
        intervals: Whether these have intervals.
        asked: A recipe whose prompts and metrics hold in place of the session's: that of a comparison.

    Returns:
        An evaluator of classification, retrieval, the evaluators that the recipe's ``evaluators`` names, and those.

    Raises:
        DataError: The rows allow no evaluation, or not one that the recipe names.
        ConfigurationError: Settings do not fit the classes, or an evaluator is unknown.
    """
    resolved = asked or session.resolved
    settings = resolved.evaluation
    resamples = settings.bootstrap_resamples if domain_metrics and intervals else 0
    evaluator = plain_evaluator(resolved, pairs, session if asked is None else None, resamples)
    context = EvaluationContext(
        pairs,
        resolved,
        session,
        evaluator.zero_shot,
        evaluator.retrieval,
        resamples,
    )
    own = METRICS[settings.primary_metric].section if settings.primary_metric is not None else ""
    wanted = [
        name
        for name in _OF_A_REPORT
        if domain_metrics or name in settings.evaluators or name == _SECTIONS.get(own, own)
    ]
    for name in dict.fromkeys([*wanted, *settings.evaluators]):
        try:
            made = EVALUATORS[name](replace(context, named=name in settings.evaluators))
        except DataError as error:
            if name in settings.evaluators:
                raise
            evaluator.semantic_notes.append(str(error))
        else:
            evaluator.parts += [made] if made is not None and made not in evaluator.parts else []
    return evaluator


def plain_evaluator(
    resolved: ResolvedInference,
    pairs: Sequence[ImageTextPair],
    session: ModelSession | None = None,
    resamples: int = 0,
) -> DomainEvaluator:
    """Classification and retrieval with the recipe's or the domain's prompts and class names. Captions that the domain
    makes equal are one caption.

    Args:
        resolved: The recipe and its domain.
        pairs: The rows.
        session: The model, whose text length captions are cut to; None where the rows alone are looked at.
        resamples: Behind the intervals of labels of which an image has several; 0 for none.

    Returns:
        An evaluator whose primary metric is the recipe's.

    Raises:
        DataError: Neither is possible.
    """
    evaluator = DomainEvaluator(
        pairs,
        resolved.evaluation.prompt_templates,
        names_of=resolved.domain.prompts.names_of,
        text_transform=caption_pipeline(resolved, session.processor if session is not None else None),
        resamples=resamples,
        seed=resolved.data.seed,
    )
    if resolved.evaluation.primary_metric is not None:
        evaluator.primary_metric = METRICS.canonical(resolved.evaluation.primary_metric)
    return evaluator
