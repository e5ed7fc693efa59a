"""Several evaluators as one: each image is embedded once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from domainclip.errors import ConfigurationError, DataError
from domainclip.evaluation.domain_metrics import DomainMetricsEvaluator
from domainclip.evaluation.multi_label import MultiLabelEvaluator, labels_of
from domainclip.evaluation.protocols import CallableEvaluator, Embedder, EvaluationResult, Evaluator, LabelledPair
from domainclip.evaluation.retrieval import RetrievalEvaluator, caption_key
from domainclip.evaluation.shared import SharedEmbedder
from domainclip.evaluation.zero_shot import ZeroShotEvaluator, known_labels
from domainclip.inference.prompts import DEFAULT_TEMPLATES
from domainclip.metrics.domain_metrics import DomainMetrics
from domainclip.metrics.metric import METRICS, Metric
from domainclip.registry import nearest

_SEMANTIC = ("class_hierarchy", "documents", "terminology")
_PER_ITEM = ("i2t_ranks", "t2i_ranks")


class DomainEvaluator(CallableEvaluator):
    """Classification, retrieval and what is added to them, embedding each image once.

    Whichever of the two the data cannot support (fewer than two classes, fewer than two captions) is left out, with the
    reason in ``notes``. The primary metric is ``acc1``, or ``mean_R@1`` without classes, or the one that is chosen.

    Args:
        pairs: Images with captions and labels.
        templates: The sentences that describe a class.
        class_names: The classes; None for the labels that occur.
        prompts: The sentences of each class, in place of the templates.
        chunk: Queries ranked at once.
        domain_metrics: The metrics of a domain.
        names_of: The names that describe a class in its label's place.
        text_transform: What the model is shown of a caption.
        resamples: Behind the intervals of labels of which an image has several; 0 for none.
        seed: Of these resamples.

    Raises:
        DataError: Neither is possible.
        ConfigurationError: The settings of ``domain_metrics`` do not fit the classes.
    """

    name = "domain"

    def __init__(
        self,
        pairs: Sequence[LabelledPair],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        class_names: Sequence[str] | None = None,
        prompts: Mapping[str, Sequence[str]] | None = None,
        chunk: int = 1024,
        domain_metrics: DomainMetrics | None = None,
        names_of: Callable[[str], Sequence[str]] | None = None,
        text_transform: Callable[[str], str] | None = None,
        resamples: int = 0,
        seed: int = 0,
    ) -> None:
        if not pairs:
            raise DataError("No rows to evaluate on: the split is empty")
        self.n_rows = len(pairs)
        self.notes: list[str] = []
        self.semantic_notes: list[str] = []
        self.zero_shot: ZeroShotEvaluator | None = None
        self.retrieval: RetrievalEvaluator | None = None
        n_classes = len(prompts or class_names or known_labels(pairs))
        several: MultiLabelEvaluator | None = None
        if any(labels_of(pair) for pair in pairs):
            several = self._multi_label(pairs, templates, names_of, resamples, seed)
        elif all(pair.label is None for pair in pairs):
            self.notes.append("No classification: no row has a label")
        elif n_classes >= 2:
            self.zero_shot = ZeroShotEvaluator(pairs, templates, class_names, prompts, names_of)
        else:
            self.notes.append(f"No classification: it takes two classes, and the rows have {n_classes}")
        n_captions = len({caption_key(pair.caption, text_transform) for pair in pairs})
        n_images = len({pair.image_path for pair in pairs})
        if min(n_captions, n_images) >= 2:
            self.retrieval = RetrievalEvaluator(pairs, chunk, text_transform)
        else:
            self.notes.append(
                "No retrieval: it takes two different images and two different captions, and the rows have "
                f"{n_images} and {n_captions}"
            )
        self.parts: list[Evaluator] = [part for part in (self.zero_shot, several, self.retrieval) if part is not None]
        if not self.parts:
            raise DataError(f"Nothing to evaluate. {'. '.join(self.notes)}")
        self.primary_metric = self.parts[0].primary_metric
        if domain_metrics is not None:
            self.parts.append(DomainMetricsEvaluator(domain_metrics, self.zero_shot, self.retrieval))

    def _multi_label(
        self,
        pairs: Sequence[LabelledPair],
        templates: Sequence[str],
        names_of: Callable[[str], Sequence[str]] | None,
        resamples: int,
        seed: int,
    ) -> MultiLabelEvaluator | None:
        try:
            found = MultiLabelEvaluator(pairs, templates, names_of, resamples, seed)
        except DataError as error:
            self.notes.append(f"No figures of labels: {error}")
            return None
        self.notes.append(
            "Images have several labels, so each label is evaluated for itself, present or absent; there is no "
            "accuracy, which would take one class an image"
        )
        return found

    @property
    def paths(self) -> list[Path]:
        """The images of all parts, each once."""
        return list(dict.fromkeys(path for part in self.parts for path in getattr(part, "paths", ())))

    @property
    def greater_is_better(self) -> bool:
        """In which direction the primary metric is better."""
        return METRICS[self.primary_metric].greater_is_better

    def evaluate(self, embed: Embedder) -> EvaluationResult:
        """The figures of all parts.

        Args:
            embed: The model.

        Returns:
            Each figure once, with its interval where one of the parts gives it, and the details of all parts: those of
            documents, the class hierarchy and terminology under ``semantics``, those of a plugin under its
            evaluator's name.

        Raises:
            ConfigurationError: No part gives the metric that was chosen as the primary one.
        """
        shared = SharedEmbedder.over(embed, self.parts)
        records: dict[str, Metric] = {}
        details: dict[str, Any] = {"n_rows": self.n_rows, "n_images": len(self.paths), "notes": self.notes}
        semantic: dict[str, EvaluationResult] = {}
        result = EvaluationResult(records, details)
        for part in self.parts:
            found = shared.result(part)
            for name, record in found.records.items():
                records[name] = replace(record, value=records[name].value) if name in records else record
            result.sums.update(found.sums)
            if part.name in _SEMANTIC:
                semantic[part.name] = found
            elif part.name in ("classification", "retrieval", "domain_metrics"):
                details |= found.details
            elif found.details:
                details[part.name] = found.details
        if semantic or self.semantic_notes:
            details["semantics"] = semantic_details(semantic, self.semantic_notes)
        if self.primary_metric not in records:
            guess, listed = nearest(self.primary_metric, records), ", ".join(sorted(records))
            hint = f"did you mean {guess!r}?" if guess else f"these rows give {listed}"
            raise ConfigurationError(f"Invalid primary_metric {self.primary_metric!r}: {hint}")
        return result


def semantic_details(found: Mapping[str, EvaluationResult], notes: Sequence[str] = ()) -> dict[str, Any]:
    """What a report shows of documents, a class hierarchy and terminology.

    Args:
        found: Their results, by the evaluator's name.
        notes: Sentences on what is left out, and why.

    Returns:
        ``metrics`` (each figure with its interval), ``notes``, ``resamples`` (how many the intervals come from, 0 for
        none), and the details of each by its name.
    """
    records = {name: record for result in found.values() for name, record in result.records.items()}
    parts = {
        name: {key: value for key, value in result.details[name].items() if key not in _PER_ITEM}
        for name, result in found.items()
    }
    resamples = max((part.pop("resamples") for part in parts.values()), default=0)
    return parts | {"notes": list(notes), "metrics": records, "resamples": resamples}
