"""Evaluators: given something that embeds, they answer with numbers.

An evaluator declares which of its numbers decides (``primary_metric``) and in which direction
(``greater_is_better``). Calling one gives the flat numbers, for a training loop to watch; ``evaluate`` adds
the details a report needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from domainclip.alignment.metrics import chunked_ranks, summarise_ranks
from domainclip.errors import DataError, ShapeError
from domainclip.evaluation.classification import classification_metrics, zero_shot_logits
from domainclip.evaluation.prompts import DEFAULT_TEMPLATES, class_prompts, classifier_weights


class Embedder(Protocol):
    """Whatever turns pictures and texts into L2-normalised float32 rows on the CPU, in the order given."""

    def encode_images(self, paths: list[Path], /) -> Float[Tensor, "images dim"]: ...

    def encode_texts(self, texts: list[str], /) -> Float[Tensor, "texts dim"]: ...


class LabelledPair(Protocol):
    """A row of a data set: a picture, what is said of it, and its class, None where the data do not say."""

    @property
    def image_path(self) -> Path: ...

    @property
    def caption(self) -> str: ...

    label: str | None


@dataclass(frozen=True)
class EvaluationResult:
    """``metrics``: flat numbers by name. ``details``: what they were computed from, ready for a report."""

    metrics: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)


class Evaluator(Protocol):
    name: str
    primary_metric: str
    greater_is_better: bool

    def __call__(self, embed: Embedder) -> dict[str, float]: ...

    def evaluate(self, embed: Embedder) -> EvaluationResult: ...


class ZeroShotEvaluator:
    """Classifies pictures by the nearest class description, with no classifier trained.

    Classes come from ``prompts`` (class → sentences), else ``class_names`` with ``templates``, else the
    labels that occur. Rows without a label, or with one that is no class, are left out and counted. A picture
    that several rows show under the same label counts once. Raises ``DataError`` when no row or fewer than
    two classes are left.
    """

    name = "zero_shot"
    primary_metric = "acc1"
    greater_is_better = True

    def __init__(
        self,
        pairs: Sequence[LabelledPair],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        class_names: Sequence[str] | None = None,
        prompts: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if prompts is None:
            labels = class_names if class_names is not None else known_labels(pairs)
            prompts = class_prompts(labels, templates) if labels else {}
        self.prompts = prompts
        self.labels = list(prompts)
        if len(self.labels) < 2:
            raise DataError(
                f"Zero-shot classification needs at least two classes, found {len(self.labels)}"
                f"{f' ({self.labels[0]!r})' if self.labels else ''}: give labelled rows of two classes or "
                "more"
            )
        number = {label: place for place, label in enumerate(self.labels)}
        self.n_unlabelled = sum(pair.label is None for pair in pairs)
        self.n_outside_classes = sum(pair.label is not None and pair.label not in number for pair in pairs)
        items = dict.fromkeys((pair.image_path, pair.label) for pair in pairs if pair.label in number)
        if not items:
            raise DataError(
                f"None of {len(pairs)} rows has a label among the classes {', '.join(self.labels[:10])}: "
                "check the label column and the class names"
            )
        self.paths = [path for path, _ in items]
        self.targets = [number[label] for _, label in items if label is not None]

    def __call__(self, embed: Embedder) -> dict[str, float]:
        return self.evaluate(embed).metrics

    def evaluate(self, embed: Embedder) -> EvaluationResult:
        return self.score(_encode_images(embed, self.paths), embed.encode_texts)

    def similarities(self, embed: Embedder) -> tuple[Float[Tensor, "images classes"], Int[Tensor, " images"]]:
        """Cosines of ``self.paths`` to every class, and the true class numbers: what a calibration is made from."""
        weights = classifier_weights(embed.encode_texts, self.prompts)
        return zero_shot_logits(_encode_images(embed, self.paths), weights), torch.tensor(self.targets)

    def score(
        self, image_embeds: Float[Tensor, "images dim"], encode_texts: Callable[[list[str]], Tensor]
    ) -> EvaluationResult:
        """The result from embeddings of ``self.paths``, for a caller who has them already."""
        logits = zero_shot_logits(image_embeds, classifier_weights(encode_texts, self.prompts))
        found = classification_metrics(logits, np.array(self.targets))
        metrics = {name: value for name, value in found.items() if isinstance(value, float)}
        metrics |= {"n_classified": len(self.paths), "n_classes": len(self.labels)}
        support = found["support"]
        details = {
            "labels": self.labels,
            "per_class_recall": dict(zip(self.labels, found["per_class_recall"], strict=True)),
            "support": dict(zip(self.labels, support, strict=True)),
            "confusion": found["confusion"],
            "image_paths": [str(path) for path in self.paths],
            "targets": [self.labels[number] for number in self.targets],
            "predictions": [self.labels[number] for number in found["predictions"]],
            # What always answering the most frequent class would score: the line a real model must pass.
            "majority_share": max(support) / sum(support),
            "n_unlabelled": self.n_unlabelled,
            "n_outside_classes": self.n_outside_classes,
            "prompts_per_class": max(len(sentences) for sentences in self.prompts.values()),
        }
        return EvaluationResult(metrics, {"classification": details})


class RetrievalEvaluator:
    """Finds captions for pictures (i2t) and pictures for captions (t2i) among all those of the set.

    Candidates are the *distinct* pictures and the *distinct* captions: an equal caption is the same caption
    (letter case and spacing aside, which CLIP's tokenizers drop too), so finding it is a hit whichever row it
    was written for. Raises ``DataError`` with fewer than two of either.
    """

    name = "retrieval"
    primary_metric = "mean_R@1"
    greater_is_better = True

    def __init__(self, pairs: Sequence[LabelledPair], chunk: int = 1024) -> None:
        self.chunk = chunk
        captions: dict[str, str] = {}
        for pair in pairs:
            captions.setdefault(_caption_key(pair.caption), pair.caption)
        self.paths = list(dict.fromkeys(pair.image_path for pair in pairs))
        self.captions = list(captions.values())
        if len(self.paths) < 2 or len(self.captions) < 2:
            raise DataError(
                f"Retrieval needs at least two pictures and two different captions, found {len(self.paths)} "
                f"and {len(self.captions)}: with one candidate every answer is right"
            )
        picture = {path: row for row, path in enumerate(self.paths)}
        text = {key: row for row, key in enumerate(captions)}
        hits = {(picture[pair.image_path], text[_caption_key(pair.caption)]) for pair in pairs}
        # [hits, 2] (picture, caption): a picture may have several captions and a caption several pictures.
        self.hits = torch.tensor(sorted(hits))

    def __call__(self, embed: Embedder) -> dict[str, float]:
        return self.evaluate(embed).metrics

    def evaluate(self, embed: Embedder) -> EvaluationResult:
        return self.score(_encode_images(embed, self.paths), embed.encode_texts)

    def score(
        self, image_embeds: Float[Tensor, "images dim"], encode_texts: Callable[[list[str]], Tensor]
    ) -> EvaluationResult:
        """The result from embeddings of ``self.paths``, for a caller who has them already."""
        text_embeds = _rows_for(encode_texts(self.captions), len(self.captions), "captions")
        i2t = chunked_ranks(image_embeds, text_embeds, self.relevance(0), self.chunk)
        t2i = chunked_ranks(text_embeds, image_embeds, self.relevance(1), self.chunk)
        metrics = summarise_ranks(i2t, t2i)
        metrics["mean_R@1"] = (metrics["i2t_R@1"] + metrics["t2i_R@1"]) / 2
        metrics |= {"n_images": len(self.paths), "n_texts": len(self.captions)}
        details = {
            "n_images": len(self.paths),
            "n_texts": len(self.captions),
            "image_paths": [str(path) for path in self.paths],
            "captions": self.captions,
            "i2t_ranks": i2t.tolist(),
            "t2i_ranks": t2i.tolist(),
        }
        return EvaluationResult(metrics, {"retrieval": details})

    def relevance(self, side: int) -> Callable[[int, int], Tensor]:
        """Boolean hits of queries start:stop; ``side`` is 0 when pictures ask, 1 when captions do."""
        hits = self.hits[self.hits[:, side].argsort(stable=True)]
        queries, candidates = hits[:, side].contiguous(), hits[:, 1 - side]
        n_candidates = (len(self.paths), len(self.captions))[1 - side]

        def rows(start: int, stop: int) -> Tensor:
            first, last = torch.searchsorted(queries, torch.tensor([start, stop])).tolist()
            mask = torch.zeros(stop - start, n_candidates, dtype=torch.bool)
            mask[queries[first:last] - start, candidates[first:last]] = True
            return mask

        return rows


class DomainEvaluator:
    """Zero-shot classification and retrieval together, embedding each picture once.

    Whichever the data cannot support (fewer than two classes, fewer than two captions) is left out, with the
    reason in ``details["notes"]``. The primary metric is ``acc1``, or ``mean_R@1`` without classes. Raises
    ``DataError`` when neither is possible.
    """

    name = "domain"
    greater_is_better = True

    def __init__(
        self,
        pairs: Sequence[LabelledPair],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        class_names: Sequence[str] | None = None,
        prompts: Mapping[str, Sequence[str]] | None = None,
        chunk: int = 1024,
    ) -> None:
        if not pairs:
            raise DataError("No rows to evaluate on: the split is empty")
        self.n_rows = len(pairs)
        self.notes: list[str] = []
        self.zero_shot: ZeroShotEvaluator | None = None
        self.retrieval: RetrievalEvaluator | None = None
        n_classes = len(prompts or class_names or known_labels(pairs))
        if all(pair.label is None for pair in pairs):
            self.notes.append("No classification: no row has a label")
        elif n_classes >= 2:
            self.zero_shot = ZeroShotEvaluator(pairs, templates, class_names, prompts)
        else:
            self.notes.append(f"No classification: the rows have {n_classes} classes, and it takes two")
        n_captions = len({_caption_key(pair.caption) for pair in pairs})
        n_pictures = len({pair.image_path for pair in pairs})
        if min(n_captions, n_pictures) >= 2:
            self.retrieval = RetrievalEvaluator(pairs, chunk)
        else:
            self.notes.append(
                f"No retrieval: the rows have {n_pictures} different pictures and {n_captions} different "
                "captions, and it takes two of each"
            )
        if self.zero_shot is None and self.retrieval is None:
            raise DataError(f"Nothing to evaluate. {'. '.join(self.notes)}")
        self.primary_metric = "acc1" if self.zero_shot else "mean_R@1"

    def __call__(self, embed: Embedder) -> dict[str, float]:
        return self.evaluate(embed).metrics

    def evaluate(self, embed: Embedder) -> EvaluationResult:
        parts = [part for part in (self.zero_shot, self.retrieval) if part is not None]
        paths = list(dict.fromkeys(path for part in parts for path in part.paths))
        embeds = _encode_images(embed, paths)
        row = {path: number for number, path in enumerate(paths)}
        metrics: dict[str, float] = {}
        details: dict[str, Any] = {"n_rows": self.n_rows, "n_pictures": len(paths), "notes": self.notes}
        for part in parts:
            result = part.score(embeds[[row[path] for path in part.paths]], embed.encode_texts)
            metrics |= result.metrics
            details |= result.details
        return EvaluationResult(metrics, details)


def known_labels(pairs: Sequence[LabelledPair]) -> list[str]:
    """The different labels that occur, sorted."""
    return sorted({pair.label for pair in pairs if pair.label is not None})


def _caption_key(caption: str) -> str:
    return " ".join(caption.split()).casefold()


def _encode_images(embed: Embedder, paths: list[Path]) -> Tensor:
    return _rows_for(embed.encode_images(paths), len(paths), "pictures")


def _rows_for(embeds: Tensor, expected: int, what: str) -> Tensor:
    if embeds.ndim != 2 or len(embeds) != expected:
        raise ShapeError(
            f"Batch size mismatch: {expected} {what} gave embeddings of shape {tuple(embeds.shape)}. "
            "An embedder returns one row for each input, in the same order"
        )
    return embeds.float().cpu()
