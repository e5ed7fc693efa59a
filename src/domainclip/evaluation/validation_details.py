"""What a validation in the middle of a run shows beside its figures: similarities, geometry, the worst classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.evaluation.protocols import Embedder, EvaluationResult
from domainclip.evaluation.shared import encode_images
from domainclip.events import ClassFigures, Similarities, ValidationDetails
from domainclip.inference.prompts import classifier_weights
from domainclip.metrics.modality_gap import modality_gap
from domainclip.metrics.uniformity import effective_rank, uniformity

BINS = 40
CLASSES = 50
"""So many are listed, the worst first."""
MISTAKEN = 3
"""Images shown of a class."""
ROWS = 2000
"""So many images and texts, evenly drawn, tell the geometry: it takes their square."""
_CHUNK = 1024


def geometry(evaluator: DomainEvaluator, embed: Embedder) -> dict[str, float]:
    """How the embeddings of the validation rows lie.

    Args:
        evaluator: Of the rows.
        embed: The model; where it is shared, nothing is embedded twice.

    Returns:
        ``modality_gap``, and of the images ``uniformity`` and ``effective_rank``.
    """
    if (found := _embeddings(evaluator, embed)) is None:
        return {}
    images, texts = _spread(found[0]), _spread(found[1])
    if len(images) < 2:
        return {}
    return {
        "modality_gap": modality_gap(images, texts),
        "uniformity": uniformity(images),
        "effective_rank": effective_rank(images),
    }


def details_of(evaluator: DomainEvaluator, embed: Embedder, result: EvaluationResult) -> ValidationDetails:
    """The histograms and the worst classes of a validation.

    Args:
        evaluator: Of the rows.
        embed: The model; where it is shared, nothing is embedded twice.
        result: What the evaluator has found.

    Returns:
        The details.
    """
    return ValidationDetails(similarities=_similarities(evaluator, embed), classes=_classes(result))


def _similarities(evaluator: DomainEvaluator, embed: Embedder) -> Similarities | None:
    if (embeddings := _embeddings(evaluator, embed)) is None:
        return None
    images, texts, relevance = embeddings
    found = list(_best_of(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), relevance))
    positives, negatives = (torch.cat(side) for side in zip(*found, strict=True))
    known = torch.cat([positives, negatives[negatives.isfinite()]])
    low, high = float(known.min()), float(known.max())
    if high - low < 1e-6:
        low, high = low - 0.5e-3, high + 0.5e-3
    bins = [torch.histc(side[side.isfinite()], BINS, low, high).int().tolist() for side in (positives, negatives)]
    return Similarities(low=low, high=high, positives=tuple(bins[0]), hardest_negatives=tuple(bins[1]))


def _best_of(images: Tensor, texts: Tensor, relevance: Callable[[int, int], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each image the highest similarity to a text of its own, and to another (−∞ where all are its own)."""
    for start in range(0, len(images), _CHUNK):
        rows = images[start : start + _CHUNK]
        own, similarity = relevance(start, start + len(rows)), rows @ texts.T
        yield (
            similarity.masked_fill(~own, -torch.inf).amax(1),
            similarity.masked_fill(own, -torch.inf).amax(1),
        )


def _embeddings(
    evaluator: DomainEvaluator, embed: Embedder
) -> tuple[Tensor, Tensor, Callable[[int, int], Tensor]] | None:
    """Images, texts, and which texts are those of images start:stop, as booleans ``[stop − start, texts]``. None where
    images have several labels and no captions to be told by."""
    if (retrieval := evaluator.retrieval) is not None:
        texts = embed.encode_texts(retrieval.captions).float().cpu()
        return encode_images(embed, retrieval.paths), texts, retrieval.relevance(0)
    if (zero_shot := evaluator.zero_shot) is None:
        return None
    weights = classifier_weights(embed.encode_texts, zero_shot.prompts)
    targets = torch.tensor(zero_shot.targets)

    def of_class(start: int, stop: int) -> Tensor:
        return F.one_hot(targets[start:stop], len(zero_shot.labels)).bool()

    return encode_images(embed, zero_shot.paths), weights.float().cpu(), of_class


def _classes(result: EvaluationResult) -> tuple[ClassFigures, ...]:
    found = result.details.get("classification")
    if found is None:
        return ()
    recall, support = found["per_class_recall"], found["support"]
    present = sorted((label for label in found["labels"] if support[label]), key=lambda label: (recall[label], label))
    shown = present[:CLASSES]
    mistaken: dict[str, list[tuple[str, str]]] = {label: [] for label in shown}
    for path, target, prediction in zip(found["image_paths"], found["targets"], found["predictions"], strict=True):
        if target != prediction and len(mistaken.get(target, ())) < MISTAKEN and target in mistaken:
            mistaken[target].append((path, prediction))
    return tuple(
        ClassFigures(label=label, images=support[label], recall=recall[label], mistaken=tuple(mistaken[label]))
        for label in shown
    )


def _spread(embeds: Tensor) -> Tensor:
    return embeds if len(embeds) <= ROWS else embeds[torch.linspace(0, len(embeds) - 1, ROWS).long()]
