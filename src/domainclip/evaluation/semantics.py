"""Documents, near misses and the domain's terms, beside the accuracy and recall that every evaluation gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from domainclip.errors import DataError
from domainclip.evaluation.class_hierarchy import ClassHierarchy, class_hierarchy_scores
from domainclip.evaluation.document_retrieval import DocumentRetrievalEvaluator
from domainclip.evaluation.terminology import TerminologyEvaluator
from domainclip.metrics.metric import Interval, Metric

_PER_ITEM = ("i2t_ranks", "t2i_ranks")


class SemanticScores:
    """Whichever of the three is given. ``encode_terms`` encodes the glossary's terms as they stand, where the
    embedder's own preprocessing would write abbreviations out. ``notes``: sentences on what is left out, and why.
    ``resamples``: how many the intervals come from; 0 for none."""

    def __init__(
        self,
        tree: ClassHierarchy | None = None,
        documents: DocumentRetrievalEvaluator | None = None,
        terminology: TerminologyEvaluator | None = None,
        encode_terms: Callable[[list[str]], Tensor] | None = None,
        notes: Sequence[str] = (),
        resamples: int = 0,
    ) -> None:
        self.tree, self.documents, self.terminology = tree, documents, terminology
        self.encode_terms, self.resamples = encode_terms, resamples
        self.notes = list(notes)
        parts = [part for part in (documents, terminology) if part is not None]
        self.paths: list[Path] = list(dict.fromkeys(path for part in parts for path in part.paths))
        """Images whose embeddings are needed."""

    def check(self, classes: Sequence[str]) -> None:
        """Raises ``ConfigurationError`` for classes that the tree lacks: before a long evaluation, not after it."""
        if self.tree is not None:
            self.tree.require(classes)

    def score(
        self,
        embeds_of: Callable[[list[Path]], Tensor],
        encode_texts: Callable[[list[str]], Tensor],
        classification: Mapping[str, Any] | None = None,
        groups: Sequence[str | None] | None = None,
    ) -> dict[str, Any]:
        """``metrics`` (each figure with its interval), and details under ``class_hierarchy``, ``documents`` and
        ``terminology``.

        ``classification``: the details of ``ZeroShotEvaluator``, which the tree needs, and the ``groups`` (patient,
        part) of its images.
        """
        metrics: dict[str, float] = {}
        details: dict[str, Any] = {}
        notes = list(self.notes)
        if self.tree is not None and classification is not None:
            found, details["class_hierarchy"] = class_hierarchy_scores(
                self.tree,
                classification["targets"],
                classification["predictions"],
                classification["labels"],
                groups,
                self.resamples,
            )
            metrics |= found
        elif self.tree is not None:
            notes.append("No class-hierarchy scores: nothing was classified")
        if self.documents is not None:
            result = self.documents.score(embeds_of(self.documents.paths), encode_texts, self.resamples)
            found_documents = result.details["documents"]
            details["documents"] = {key: value for key, value in found_documents.items() if key not in _PER_ITEM}
            metrics |= result.metrics
        if self.terminology is not None:
            paths = self.terminology.paths
            result = self.terminology.score(
                embeds_of(paths) if paths else None, encode_texts, self.encode_terms, self.resamples
            )
            details |= result.details
            metrics |= result.metrics
        intervals: dict[str, Interval] = {
            name: found for part in details.values() for name, found in part.pop("intervals").items()
        }
        records = {name: Metric.of(name, value, intervals.get(name)) for name, value in metrics.items()}
        return details | {"notes": notes, "metrics": records, "resamples": self.resamples}


def documents_or_note(pairs: Sequence[Any]) -> tuple[DocumentRetrievalEvaluator | None, list[str]]:
    """The retrieval by document, or why these rows do not support it."""
    try:
        return DocumentRetrievalEvaluator(pairs), []
    except DataError as error:
        return None, [str(error)]
