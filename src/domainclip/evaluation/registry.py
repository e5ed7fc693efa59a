"""The evaluators a recipe can name. One file adds one, of this package or of a plugin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from domainclip.data.records import ImageTextPair
from domainclip.errors import DataError
from domainclip.evaluation.protocols import Evaluator
from domainclip.evaluation.retrieval import RetrievalEvaluator
from domainclip.evaluation.zero_shot import ZeroShotEvaluator
from domainclip.inference import ModelSession
from domainclip.registry import Registry
from domainclip.resolve import ResolvedInference


@dataclass(frozen=True)
class EvaluationContext:
    """What an evaluator is made from.

    Args:
        pairs: The rows: images with captions, labels and groups.
        resolved: The recipe's groups, ``resolved.evaluation`` among them, and ``resolved.domain``.
        session: The model that will be evaluated; None where the rows alone are looked at.
        zero_shot: Who classifies these rows, None where they have no classes.
        retrieval: Who ranks them, None where they have nothing to rank.
        resamples: How many the intervals come from; 0 for none.
        named: Whether the recipe names this evaluator; one that is not named is left out where nothing asks for it.
    """

    pairs: Sequence[ImageTextPair]
    resolved: ResolvedInference
    session: ModelSession | None = None
    zero_shot: ZeroShotEvaluator | None = None
    retrieval: RetrievalEvaluator | None = None
    resamples: int = 0
    named: bool = False


EvaluatorFactory: TypeAlias = Callable[[EvaluationContext], Evaluator | None]
"""Makes an evaluator, or None where neither recipe nor domain asks for it. Raises ``DataError`` where the rows do not
support it: a sentence for the report, or an error where the recipe names the evaluator."""

EVALUATORS: Registry[EvaluatorFactory] = Registry("evaluator")
"""``@EVALUATORS.register("my_metric")`` before a factory; the recipe then names it: ``evaluators: [my_metric]``."""


@EVALUATORS.register("classification")
def _zero_shot(context: EvaluationContext) -> Evaluator:
    if context.zero_shot is None:
        raise DataError("The recipe names classification among its evaluators, and the rows allow no classification")
    return context.zero_shot


@EVALUATORS.register("retrieval")
def _retrieval(context: EvaluationContext) -> Evaluator:
    if context.retrieval is None:
        raise DataError("The recipe names retrieval among its evaluators, and the rows allow none")
    return context.retrieval
