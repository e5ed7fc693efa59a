"""The objectives once more, from their documented equations: one query and one candidate at a time, in plain numbers.

What an objective holds without gradient (who is mined, how alike two images are, what the texts say of each other)
is read from ``frozen``, so that finite differences of these functions are the gradients the package must have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from domainclip.losses import (
    CLIPContrastiveLoss,
    ContrastiveObjective,
    DomainSpecificLoss,
    HardNegativeMiningLoss,
    MultiPositiveContrastiveLoss,
    MultiScaleLoss,
    SigmoidContrastiveLoss,
)

Vector = Sequence[float]
METRICS = ("cosine", "dot", "euclidean", "bilinear")
TAU = 0.3


def embeddings(rows: int = 6, dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and texts in float64."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return images, torch.randn(rows, dim, generator=generator, dtype=torch.float64)


def owned_scale(tau: float = TAU) -> Tensor:
    """A model's ``logit_scale``, in float64: the objectives' own is kept in float32."""
    return torch.tensor(math.log(1 / tau), dtype=torch.float64)


def product(a: Vector, b: Vector) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True))


def unit(a: Vector) -> list[float]:
    length = math.sqrt(product(a, a))
    return [value / length for value in a]


def compare(metric: str, image: Vector, text: Vector) -> float:
    if metric in ("cosine", "bilinear"):  # for bilinear the text is mapped already
        return product(unit(image), unit(text))
    if metric == "dot":
        return product(image, text)
    return -math.sqrt(sum((p - q) ** 2 for p, q in zip(image, text, strict=True)))


@dataclass
class Batch:
    """Numbers of one batch, of which every query's row of similarities can be asked."""

    images: list[list[float]]
    texts: list[list[float]]
    metric: str
    groups: list[int]
    labels: list[int] | None = None
    progress: float = 1.0
    tau: float = TAU

    @property
    def size(self) -> int:
        return len(self.images)

    def score(self, direction: str, query: int, candidate: int) -> float:
        image, text = (query, candidate) if direction == "i2t" else (candidate, query)
        return compare(self.metric, self.images[image], self.texts[text])

    def candidates(self, direction: str) -> list[list[float]]:
        return self.texts if direction == "i2t" else self.images

    def same_label(self, one: int, other: int) -> bool:
        return self.labels is not None and self.labels[one] >= 0 and self.labels[one] == self.labels[other]


def batch_of(
    images: Tensor, texts: Tensor, metric: str, groups: Sequence[int], weight: Tensor | None = None, **others: Any
) -> Batch:
    mapped = (
        texts.tolist() if weight is None else [[product(row, y) for row in weight.tolist()] for y in texts.tolist()]
    )
    return Batch(images.tolist(), mapped, metric, list(groups), **others)


RowDefinition = Callable[[Batch, Batch, str, int], float]
"""(batch, frozen, direction, query) to the query's loss."""


def cross_entropy(logits: Vector, targets: Vector, weights: Vector | None = None) -> float:
    """-Σ t_j log(e^{s_j} / Σ a_k e^{s_k})"""
    top = max(logits)
    total = sum(a * math.exp(s - top) for a, s in zip(weights or [1.0] * len(logits), logits, strict=True))
    return sum(t * (top + math.log(total) - s) for t, s in zip(targets, logits, strict=True))


def equal_fractions(positives: Sequence[int], size: int) -> list[float]:
    return [1 / len(positives) if k in positives else 0.0 for k in range(size)]


def group_of(batch: Batch, query: int) -> list[int]:
    return [k for k in range(batch.size) if batch.groups[k] == batch.groups[query]]


def contrastive(batch: Batch, frozen: Batch, direction: str, query: int) -> float:
    logits = [batch.score(direction, query, k) / batch.tau for k in range(batch.size)]
    return cross_entropy(logits, equal_fractions([query], batch.size))


def multi_positive(batch: Batch, frozen: Batch, direction: str, query: int, smoothing: float = 0.0) -> float:
    size = batch.size
    logits = [batch.score(direction, query, k) / batch.tau for k in range(size)]
    targets = [(1 - smoothing) * t + smoothing / size for t in equal_fractions(group_of(batch, query), size)]
    return cross_entropy(logits, targets)


def sigmoid(batch: Batch, frozen: Batch, direction: str, query: int, bias: float) -> float:
    total = 0.0
    for k in range(batch.size):
        sign = 1 if batch.groups[k] == batch.groups[query] else -1
        total += math.log(1 + math.exp(-sign * (batch.score(direction, query, k) / batch.tau + bias)))
    return total


def mined_by(frozen: Batch, direction: str, query: int, ratio: float, strategy: str) -> list[int]:
    candidates = frozen.candidates(direction)
    own = frozen.score(direction, query, query)
    allowed = []
    for k in range(frozen.size):
        if frozen.groups[k] == frozen.groups[query]:
            continue
        if product(unit(candidates[k]), unit(candidates[query])) >= 0.9999:
            continue
        if strategy == "semi-hard" and frozen.score(direction, query, k) >= own:
            continue
        allowed.append(k)
    count = math.ceil(Fraction(str(ratio)) * len(allowed))
    return sorted(allowed, key=lambda k: -frozen.score(direction, query, k))[:count]


def hard_negative(
    batch: Batch,
    frozen: Batch,
    direction: str,
    query: int,
    *,
    ratio: float,
    strategy: str,
    weight: float,
    strength: float = 1.0,
    warmup: float = 0.0,
) -> float:
    mined = mined_by(frozen, direction, query, ratio, strategy)
    rate = 1.0 if warmup == 0 else min(1.0, batch.progress / warmup)
    hardest = max((frozen.score(direction, query, k) / frozen.tau for k in mined), default=0.0)
    weights = [1.0] * batch.size
    for k in mined:
        fraction = 1.0
        if strategy == "weighted":
            fraction = math.exp(strength * (frozen.score(direction, query, k) / frozen.tau - hardest))
        weights[k] = 1 + rate * (weight - 1) * fraction
    logits = [batch.score(direction, query, k) / batch.tau for k in range(batch.size)]
    return cross_entropy(logits, equal_fractions(group_of(batch, query), batch.size), weights)


def medical(batch: Batch, frozen: Batch, direction: str, query: int, *, weight: float, margin: float) -> float:
    positives = [k for k in range(batch.size) if k in group_of(batch, query) or batch.same_label(k, query)]
    logits = [
        (batch.score(direction, query, k) - (weight * margin if k in positives else 0.0)) / batch.tau
        for k in range(batch.size)
    ]
    return cross_entropy(logits, equal_fractions(positives, batch.size))


def industrial(
    batch: Batch, frozen: Batch, direction: str, query: int, *, weight: float, strength: float, warmup: float = 0.0
) -> float:
    rate = 1.0 if warmup == 0 else min(1.0, batch.progress / warmup)
    positives = group_of(batch, query)
    logits = []
    for k in range(batch.size):
        logit = batch.score(direction, query, k) / batch.tau
        if k not in positives and not batch.same_label(k, query):
            alike = product(unit(frozen.images[query]), unit(frozen.images[k]))
            logit += rate * weight * strength * max(0.0, alike)
        logits.append(logit)
    return cross_entropy(logits, equal_fractions(positives, batch.size))


def scientific(batch: Batch, frozen: Batch, direction: str, query: int, *, weight: float, fraction: float) -> float:
    fraction = min(weight * fraction, 0.9)
    near = [math.exp(product(unit(frozen.texts[query]), unit(frozen.texts[k])) / 0.1) for k in range(batch.size)]
    hard = equal_fractions(group_of(batch, query), batch.size)
    targets = [(1 - fraction) * t + fraction * n / sum(near) for t, n in zip(hard, near, strict=True)]
    return cross_entropy([batch.score(direction, query, k) / batch.tau for k in range(batch.size)], targets)


def multi_scale(batch: Batch, frozen: Batch, direction: str, query: int, *, scales: Vector, weights: Vector) -> float:
    total = 0.0
    for scale, weight in zip(scales, weights, strict=True):
        logits = [batch.score(direction, query, k) / (batch.tau * scale) for k in range(batch.size)]
        total += weight / sum(weights) * cross_entropy(logits, equal_fractions(group_of(batch, query), batch.size))
    return total


@dataclass(frozen=True)
class Case:
    """An objective, the keywords it is made with, and the definition with the same numbers."""

    kind: type[ContrastiveObjective]
    definition: RowDefinition
    keywords: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    smooth: bool = True
    """False: a part is held without gradient, so that plain finite differences are not its derivative."""

    def make(self, metric: str = "cosine", weight: Tensor | None = None, **others: Any) -> ContrastiveObjective:
        loss = self.kind(similarity_metric=metric, **self.keywords, **others)
        if metric == "bilinear" and weight is not None:
            loss.similarity.materialise(len(weight), weight)
            with torch.no_grad():
                loss.similarity.weight.copy_(weight)
        return loss

    def rows(self, batch: Batch, direction: str, frozen: Batch | None = None) -> list[float]:
        return [self.definition(batch, frozen or batch, direction, q, **self.numbers) for q in range(batch.size)]

    def value(self, batch: Batch, frozen: Batch | None = None) -> tuple[float, float, float]:
        """The loss, image to text, text to image."""
        halves = [sum(self.rows(batch, direction, frozen)) / batch.size for direction in ("i2t", "t2i")]
        return sum(halves) / 2, halves[0], halves[1]


def _mining(strategy: str, ratio: float, weight: float, **others: float) -> Case:
    return Case(
        HardNegativeMiningLoss,
        hard_negative,
        {"mining_strategy": strategy, "hard_negative_ratio": ratio, "hard_negative_weight": weight}
        | ({"hardness_strength": others["strength"]} if "strength" in others else {})
        | ({"hardness_warmup": others["warmup"]} if "warmup" in others else {}),
        {"strategy": strategy, "ratio": ratio, "weight": weight, **others},
        smooth=False,
    )


CASES: dict[str, Case] = {
    "contrastive": Case(CLIPContrastiveLoss, contrastive),
    "multi_positive": Case(MultiPositiveContrastiveLoss, multi_positive),
    "smoothed": Case(MultiPositiveContrastiveLoss, multi_positive, {"label_smoothing": 0.2}, {"smoothing": 0.2}),
    "sigmoid": Case(SigmoidContrastiveLoss, sigmoid, {"bias": -1.5}, {"bias": -1.5}),
    "semi-hard": _mining("semi-hard", 0.5, 3.0),
    "hard": _mining("hard", 0.3, 2.0),
    "hard, warming up": _mining("hard", 0.75, 4.0, warmup=0.5),
    "weighted": _mining("weighted", 0.6, 3.0, strength=0.7),
    "general": Case(DomainSpecificLoss, multi_positive, {"domain": "general"}),
    "medical": Case(
        DomainSpecificLoss,
        medical,
        {"domain": "medical", "domain_weight": 1.5, "margin": 0.1},
        {"weight": 1.5, "margin": 0.1},
    ),
    "industrial": Case(
        DomainSpecificLoss,
        industrial,
        {"domain": "industrial", "domain_weight": 1.5, "hardness_strength": 0.8, "hardness_warmup": 0.5},
        {"weight": 1.5, "strength": 0.8, "warmup": 0.5},
        smooth=False,
    ),
    "scientific": Case(
        DomainSpecificLoss,
        scientific,
        {"domain": "scientific", "domain_weight": 1.5, "soft_target_fraction": 0.3},
        {"weight": 1.5, "fraction": 0.3},
        smooth=False,
    ),
    "multi_scale": Case(
        MultiScaleLoss,
        multi_scale,
        {"scales": (1.0, 0.75, 0.5), "scale_weights": (1.0, 0.5, 0.5)},
        {"scales": (1.0, 0.75, 0.5), "weights": (1.0, 0.5, 0.5)},
    ),
}
