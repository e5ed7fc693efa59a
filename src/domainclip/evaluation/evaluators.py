"""Evaluators: given something that embeds, they answer with numbers.

An evaluator declares which of its numbers decides (``primary_metric``) and in which direction
(``greater_is_better``). Calling one gives the flat numbers, for a training loop to watch; ``evaluate`` adds
the details a report needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from domainclip.errors import DataError, ShapeError
from domainclip.evaluation.protocols import (
    AddedScores,
    Embedder,
    EvaluationResult,
    LabelledPair,
)
from domainclip.inference.prompts import DEFAULT_TEMPLATES, class_prompts, classifier_weights
from domainclip.metrics.class_scores import ClassScores
from domainclip.metrics.classification import classification_metrics, zero_shot_logits
from domainclip.metrics.domain_metrics import DomainMetrics, RetrievalRanks
from domainclip.metrics.metric import Metric
from domainclip.metrics.retrieval import chunked_ranks, summarise_ranks


class ZeroShotEvaluator:
    """Classifies images by the nearest class description, with no classifier trained.

    Classes come from ``prompts`` (class → sentences), else ``class_names`` with ``templates``, else the labels that
    occur; ``names_of`` gives the names that describe a class in its label's place. Rows without a label, or with one
    that is no class, are left out and counted. An image that several rows show under the same label counts once.
    Raises ``DataError`` when no row or fewer than two classes are left.
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
        names_of: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        if prompts is None:
            labels = class_names if class_names is not None else known_labels(pairs)
            prompts = class_prompts(labels, templates, names_of=names_of) if labels else {}
        self.prompts = prompts
        self.labels = list(prompts)
        if len(self.labels) < 2:
            raise DataError(
                f"Zero-shot classification needs at least two classes, found {len(self.labels)}"
                f"{f' ({self.labels[0]!r})' if self.labels else ''}: give labelled rows of two classes or "
                "more"
            )
        index_of = {label: index for index, label in enumerate(self.labels)}
        self.n_unlabelled = sum(pair.label is None for pair in pairs)
        self.n_outside_classes = sum(pair.label is not None and pair.label not in index_of for pair in pairs)
        items = dict.fromkeys((pair.image_path, pair.label) for pair in pairs if pair.label in index_of)
        if not items:
            raise DataError(
                f"None of {len(pairs)} rows has a label among the classes {', '.join(self.labels[:10])}: "
                "check the label column and the class names"
            )
        self.paths = [path for path, _ in items]
        self.targets = [index_of[label] for _, label in items if label is not None]
        self.groups = _of_images(pairs, self.paths, "group")
        self.disciplines = _of_images(pairs, self.paths, "discipline")

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
        return self.result(zero_shot_logits(image_embeds, classifier_weights(encode_texts, self.prompts)))

    def result(self, logits: Float[Tensor, "images classes"]) -> EvaluationResult:
        """The result from the similarities of ``self.paths`` to every class."""
        found = classification_metrics(logits, np.array(self.targets))
        metrics = {name: value for name, value in found.items() if isinstance(value, float)}
        counts = {"n_classified": len(self.paths), "n_classes": len(self.labels)}
        support = found["support"]
        details = {
            "labels": self.labels,
            "per_class_recall": dict(zip(self.labels, found["per_class_recall"], strict=True)),
            "support": dict(zip(self.labels, support, strict=True)),
            "confusion": found["confusion"],
            "image_paths": [str(path) for path in self.paths],
            "targets": [self.labels[number] for number in self.targets],
            "predictions": [self.labels[number] for number in found["predictions"]],
            "groups": self.groups,
            # What always answering the most frequent class would score: the line a real model must pass.
            "majority_fraction": max(support) / sum(support),
            "n_unlabelled": self.n_unlabelled,
            "n_outside_classes": self.n_outside_classes,
            "prompts_per_class": max(len(sentences) for sentences in self.prompts.values()),
        }
        records = EvaluationResult.of(metrics, n_units=len(self.paths)).records | EvaluationResult.of(counts).records
        return EvaluationResult(records, {"classification": details})


class RetrievalEvaluator:
    """Finds captions for images (i2t) and images for captions (t2i) among all those of the set.

    Candidates are the *distinct* images and the *distinct* captions: an equal caption is the same caption
    (letter case and spacing aside, which CLIP's tokenizers drop too), so finding it is a hit whichever row it
    was written for. So is one that is equal after ``text_transform``, which is what the model is shown. Raises
    ``DataError`` with fewer than two of either.
    """

    name = "retrieval"
    primary_metric = "mean_R@1"
    greater_is_better = True

    def __init__(
        self,
        pairs: Sequence[LabelledPair],
        chunk: int = 1024,
        text_transform: Callable[[str], str] | None = None,
    ) -> None:
        self.chunk = chunk
        captions: dict[str, str] = {}
        keys = [_caption_key(pair.caption, text_transform) for pair in pairs]
        for key, pair in zip(keys, pairs, strict=True):
            captions.setdefault(key, pair.caption)
        self.paths = list(dict.fromkeys(pair.image_path for pair in pairs))
        self.captions = list(captions.values())
        if len(self.paths) < 2 or len(self.captions) < 2:
            raise DataError(
                f"Retrieval needs at least two images and two different captions, found {len(self.paths)} "
                f"and {len(self.captions)}: with one candidate every answer is right"
            )
        image = {path: row for row, path in enumerate(self.paths)}
        text = {key: row for row, key in enumerate(captions)}
        hits = {(image[pair.image_path], text[key]) for key, pair in zip(keys, pairs, strict=True)}
        # [hits, 2] (image, caption): an image may have several captions and a caption several images.
        self.hits = torch.tensor(sorted(hits))
        self.groups = _of_images(pairs, self.paths, "group")

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
        counts = {"i2t": len(self.paths), "t2i": len(self.captions)}
        records = {name: Metric(name, value, n_units=counts[name[:3]]) for name, value in metrics.items()}
        mean = (metrics["i2t_R@1"] + metrics["t2i_R@1"]) / 2
        records["mean_R@1"] = Metric("mean_R@1", mean, n_units=min(counts.values()))
        records |= EvaluationResult.of({"n_images": counts["i2t"], "n_texts": counts["t2i"]}).records
        details = {
            "n_images": len(self.paths),
            "n_texts": len(self.captions),
            "image_paths": [str(path) for path in self.paths],
            "captions": self.captions,
            "i2t_ranks": i2t.tolist(),
            "t2i_ranks": t2i.tolist(),
            "groups": self.groups,
            "hits": self.hits.tolist(),
        }
        return EvaluationResult(records, {"retrieval": details})

    def relevance(self, side: int) -> Callable[[int, int], Tensor]:
        """Boolean hits of queries start:stop; ``side`` is 0 when images ask, 1 when captions do."""
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
    """Zero-shot classification and retrieval together, embedding each image once.

    Whichever the data cannot support (fewer than two classes, fewer than two captions) is left out, with the
    reason in ``details["notes"]``. The primary metric is ``acc1``, or ``mean_R@1`` without classes. Raises
    ``DataError`` when neither is possible, ``ConfigurationError`` for a ``domain_metrics`` whose settings do not fit
    the classes.

    ``domain_metrics`` adds those of a domain: their numbers to the metrics, their intervals to
    ``details["domain_metrics"]``. ``semantics`` adds those of documents, a class hierarchy and terminology, with
    ``details["semantics"]``.
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
        domain_metrics: DomainMetrics | None = None,
        names_of: Callable[[str], Sequence[str]] | None = None,
        text_transform: Callable[[str], str] | None = None,
        semantics: AddedScores | None = None,
    ) -> None:
        if not pairs:
            raise DataError("No rows to evaluate on: the split is empty")
        self.domain_metrics, self.semantics = domain_metrics, semantics
        self.n_rows = len(pairs)
        self.notes: list[str] = []
        self.zero_shot: ZeroShotEvaluator | None = None
        self.retrieval: RetrievalEvaluator | None = None
        n_classes = len(prompts or class_names or known_labels(pairs))
        if all(pair.label is None for pair in pairs):
            self.notes.append("No classification: no row has a label")
        elif n_classes >= 2:
            self.zero_shot = ZeroShotEvaluator(pairs, templates, class_names, prompts, names_of)
        else:
            self.notes.append(f"No classification: the rows have {n_classes} classes, and it takes two")
        n_captions = len({_caption_key(pair.caption, text_transform) for pair in pairs})
        n_images = len({pair.image_path for pair in pairs})
        if min(n_captions, n_images) >= 2:
            self.retrieval = RetrievalEvaluator(pairs, chunk, text_transform)
        else:
            self.notes.append(
                f"No retrieval: the rows have {n_images} different images and {n_captions} different "
                "captions, and it takes two of each"
            )
        if self.zero_shot is None and self.retrieval is None:
            raise DataError(f"Nothing to evaluate. {'. '.join(self.notes)}")
        self.primary_metric = "acc1" if self.zero_shot else "mean_R@1"
        if domain_metrics is not None and self.zero_shot is not None:
            domain_metrics.check(self.zero_shot.labels)
        if semantics is not None and self.zero_shot is not None:
            semantics.check(self.zero_shot.labels)

    def __call__(self, embed: Embedder) -> dict[str, float]:
        return self.evaluate(embed).metrics

    def evaluate(self, embed: Embedder) -> EvaluationResult:
        parts = [part for part in (self.zero_shot, self.retrieval) if part is not None]
        asking = parts if self.semantics is None else [*parts, self.semantics]
        paths = list(dict.fromkeys(path for part in asking for path in part.paths))
        embeds = _encode_images(embed, paths)
        row = {path: index for index, path in enumerate(paths)}
        records: dict[str, Metric] = {}
        details: dict[str, Any] = {"n_rows": self.n_rows, "n_images": len(paths), "notes": self.notes}
        classes: ClassScores | None = None
        ranks: RetrievalRanks | None = None
        for part in parts:
            of_part = embeds[[row[path] for path in part.paths]]
            if isinstance(part, ZeroShotEvaluator):
                logits = zero_shot_logits(of_part, classifier_weights(embed.encode_texts, part.prompts))
                result = part.result(logits)
                if self.domain_metrics is not None:
                    temperature = self.domain_metrics.temperature()
                    classes = ClassScores.from_similarities(
                        logits, part.targets, part.labels, temperature, part.groups, part.disciplines
                    )
            else:
                result = part.score(of_part, embed.encode_texts)
                found = result.details["retrieval"]
                ranks = RetrievalRanks(found["i2t_ranks"], found["t2i_ranks"], part.hits.numpy(), part.groups)
            records |= result.records
            details |= result.details
        if self.domain_metrics is not None:
            details["domain_metrics"] = self.domain_metrics.score(classes, ranks)
            for name, found in details["domain_metrics"]["metrics"].items():
                records[name] = replace(found, value=records[name].value) if name in records else found
        if self.semantics is not None:
            details["semantics"] = self.semantics.score(
                lambda chosen: embeds[[row[path] for path in chosen]],
                embed.encode_texts,
                details.get("classification"),
                self.zero_shot.groups if self.zero_shot is not None else None,
            )
            records |= details["semantics"]["metrics"]
        return EvaluationResult(records, details)


def known_labels(pairs: Sequence[LabelledPair]) -> list[str]:
    """The different labels that occur, sorted."""
    return sorted({pair.label for pair in pairs if pair.label is not None})


def _of_images(pairs: Sequence[LabelledPair], paths: Sequence[Path], name: str) -> list[str | None]:
    """What the rows say of each image (its group, its discipline); None where they do not."""
    found: dict[Path, str | None] = {}
    for pair in pairs:
        if found.get(pair.image_path) is None:
            found[pair.image_path] = getattr(pair, name, None)
    return [found[path] for path in paths]


def _caption_key(caption: str, text_transform: Callable[[str], str] | None = None) -> str:
    shown = caption if text_transform is None else text_transform(caption)
    return " ".join(shown.split()).casefold()


def _encode_images(embed: Embedder, paths: list[Path]) -> Tensor:
    return _rows_for(embed.encode_images(paths), len(paths), "images")


def _rows_for(embeds: Tensor, expected: int, what: str) -> Tensor:
    if embeds.ndim != 2 or len(embeds) != expected:
        raise ShapeError(
            f"Batch size mismatch: {expected} {what} gave embeddings of shape {tuple(embeds.shape)}. "
            "An embedder returns one row for each input, in the same order"
        )
    return embeds.float().cpu()
