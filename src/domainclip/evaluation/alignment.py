"""How well images and captions agree, in numbers: never more than a block of the similarity matrix at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from domainclip.errors import ShapeError
from domainclip.evaluation.evaluators import Embedder, LabelledPair, RetrievalEvaluator
from domainclip.metrics.distinct import distinct_rows, spread
from domainclip.metrics.modality_gap import modality_gap
from domainclip.metrics.retrieval import K_VALUES, ranks_of_best_hit, summarise_ranks
from domainclip.metrics.separation import chance_recall, separation
from domainclip.retrieval import SimilarityComputer

LARGEST_SAMPLE = 4_000
"""Images and captions of the largest similarity matrix that is held: 64 MB in float32."""

_BLOCK = 4_000_000  # similarities at once while everything is ranked: a few copies of them are needed
_ANY_UNIT_METRIC = ("cosine", "dot", "euclidean", "bilinear")


class AlignmentRows:
    """The distinct images and captions of some rows, and which belong together.

    Both as in ``RetrievalEvaluator``: an equal caption is the same caption, a hit whichever row it was written for.

    Raises:
        DataError: There are fewer than two images or two captions.
    """

    def __init__(self, pairs: Sequence[LabelledPair], text_transform: Callable[[str], str] | None = None) -> None:
        evaluator = RetrievalEvaluator(pairs, text_transform=text_transform)
        self.n_rows = len(pairs)
        self.paths, self.captions = evaluator.paths, evaluator.captions
        self.hits: Int[Tensor, "pairs 2"] = evaluator.hits
        """Numbers of image and caption of each pair, sorted by image."""
        self.image_hits, self.caption_hits = evaluator.relevance(0), evaluator.relevance(1)
        label_of: dict[object, str] = {}
        for pair in pairs:
            if pair.label is not None:
                label_of.setdefault(pair.image_path, pair.label)
        self.labels: list[str | None] = [label_of.get(path) for path in self.paths]
        self.classes = sorted(set(label_of.values()))
        found: list[Counter[str]] = [Counter() for _ in self.captions]
        for image, caption in self.hits.tolist():
            label = self.labels[image]
            if label is not None:
                found[caption][label] += 1
        self.caption_classes = [set(counts) for counts in found]
        self.caption_labels = [min(counts, key=lambda label: (-counts[label], label), default=None) for counts in found]
        """The class that a caption is most often written for."""

    def counts(self) -> dict[str, int]:
        """Count what the rows consist of.

        Returns:
            Numbers by name: rows, distinct images and texts, pairs, shared captions, classes, images without a label.
        """
        images_of = torch.bincount(self.hits[:, 1], minlength=len(self.captions))
        return {
            "rows": self.n_rows,
            "n_images": len(self.paths),
            "n_texts": len(self.captions),
            "pairs": len(self.hits),
            "shared_captions": int((images_of > 1).sum()),
            "images_with_a_shared_caption": int(torch.unique(self.hits[images_of[self.hits[:, 1]] > 1, 0]).numel()),
            "most_images_of_a_caption": int(images_of.max()),
            "classes": len(self.classes),
            "captions_of_several_classes": sum(len(classes) > 1 for classes in self.caption_classes),
            "images_without_a_label": sum(label is None for label in self.labels),
        }

    def targets(self, images: Int[Tensor, " i"], texts: Int[Tensor, " t"]) -> Bool[Tensor, "i t"]:
        """Which of these images and captions belong together.

        Args:
            images: Numbers of images.
            texts: Numbers of captions.

        Returns:
            The hits.
        """
        image_index = torch.full((len(self.paths),), -1).scatter_(0, images, torch.arange(len(images)))
        text_index = torch.full((len(self.captions),), -1).scatter_(0, texts, torch.arange(len(texts)))
        rows, columns = image_index[self.hits[:, 0]], text_index[self.hits[:, 1]]
        kept = (rows >= 0) & (columns >= 0)
        matrix = torch.zeros(len(images), len(texts), dtype=torch.bool)
        matrix[rows[kept], columns[kept]] = True
        return matrix

    def sample(self, seed: int, most: int = LARGEST_SAMPLE) -> tuple[Int[Tensor, " i"], Int[Tensor, " t"]]:
        """All images and captions, or at most ``most`` of each: those of pairs drawn by ``seed``, so that each
        image and each caption of the sample belongs to something in it.

        Args:
            seed: Of the draw.
            most: Of each.

        Returns:
            Numbers of images and captions.
        """
        if max(len(self.paths), len(self.captions)) <= most:
            return torch.arange(len(self.paths)), torch.arange(len(self.captions))
        order = torch.randperm(len(self.hits), generator=torch.Generator().manual_seed(seed))
        # A pair adds at most one image and one caption: that many pairs can never be too many.
        drawn = self.hits[order[:most]]
        return drawn[:, 0].unique(), drawn[:, 1].unique()


@dataclass(frozen=True)
class Embedded:
    """What one model makes of the rows: unit-length rows, float32 on the CPU."""

    name: str
    images: Float[Tensor, "images dim"]
    texts: Float[Tensor, "texts dim"]


def embed(rows: AlignmentRows, model: Embedder, name: str) -> Embedded:
    """Each distinct image and caption through the model once.

    Args:
        rows: What is embedded.
        model: By whom.
        name: The model's name.

    Returns:
        The embeddings.
    """
    return Embedded(name, model.encode_images(rows.paths), model.encode_texts(rows.captions))


class Metric:
    """A recipe's ``similarity_metric`` for unit-length embeddings.

    There the built-in ones rank alike, so all are ranked by the inner product, as the evaluation does: a square root
    in float32 would make ties. A learned (bilinear) metric is in a trained model's weights already, where it is the
    cosine.
    """

    def __init__(self, name: str) -> None:
        self.name = "cosine" if name == "bilinear" else name
        self.computer = SimilarityComputer(self.name)
        self._plain = name in _ANY_UNIT_METRIC

    def scores(self, images: Tensor, texts: Tensor) -> Float[Tensor, "images texts"]:
        """What is ranked.

        Args:
            images: Unit-length rows.
            texts: Unit-length rows.

        Returns:
            The scores.
        """
        return images @ texts.T if self._plain else self.computer.compute(images, texts)

    def values(self, scores: Tensor) -> Tensor:
        """The same in the metric's units.

        Args:
            scores: What is ranked.

        Returns:
            The similarities.
        """
        return -torch.sqrt((2 - 2 * scores).clamp_min(0)) if self.name == "euclidean" else scores

    def matrix(self, images: Tensor, texts: Tensor) -> Float[Tensor, "images texts"]:
        """Similarities in the metric's units.

        Args:
            images: Unit-length rows.
            texts: Unit-length rows.

        Returns:
            The similarities.
        """
        return self.values(self.scores(images, texts))


@dataclass(frozen=True)
class Answers:
    """One direction: for each query the rank of its best hit, its most similar miss (−1 where everything is a hit),
    and the similarities of both in the metric's units."""

    ranks: Int[Tensor, " queries"]
    best_hit: Int[Tensor, " queries"]
    hit_value: Float[Tensor, " queries"]
    best_miss: Int[Tensor, " queries"]
    miss_value: Float[Tensor, " queries"]

    def margins(self) -> Float[Tensor, " queries"]:
        """How much the best miss beats the best hit.

        Returns:
            ``[queries]``, in the metric's units; −∞ without a miss.
        """
        return self.miss_value - self.hit_value


@dataclass(frozen=True)
class Alignment:
    """All that is reported of one model. ``pair_ranks`` and ``pair_values`` are those of ``AlignmentRows.hits``."""

    name: str
    metrics: dict[str, float | None]
    images: Answers
    captions: Answers
    pair_ranks: Int[Tensor, " pairs"]
    pair_values: Float[Tensor, " pairs"]
    class_similarity: Float[np.ndarray, "classes classes"] | None
    """Mean similarity of the images of one class (row) and the captions of one (column)."""
    confused: list[dict[str, str | int]] = field(default_factory=list)


def measure(rows: AlignmentRows, model: Embedded, metric: Metric, seed: int) -> Alignment:
    """The figures of one model.

    Args:
        rows: What was embedded.
        model: Their embeddings.
        metric: How they are compared.
        seed: Of the sample that AUROC, overlap and threshold are taken from.

    Returns:
        The figures.

    Raises:
        ShapeError: Embeddings are not finite, or not one for each distinct image and caption.
    """
    if len(model.images) != len(rows.paths) or len(model.texts) != len(rows.captions):
        raise ShapeError(
            f"{model.name}: {len(model.images)} image and {len(model.texts)} caption embeddings for "
            f"{len(rows.paths)} images and {len(rows.captions)} captions: embed the same rows"
        )
    totals = _Totals(rows)
    image_answers = _answers(metric, model.images, model.texts, rows.image_hits, totals.add)
    # A learned metric of the user's own tells images from texts, so images always come first.
    captions = _answers(metric, model.texts, model.images, rows.caption_hits, swap=True)
    images, texts = rows.sample(seed)
    values = metric.matrix(model.images[images], model.texts[texts])
    targets = rows.targets(images, texts)
    hits, misses = values[targets].numpy(), values[~targets].numpy()
    found = separation(hits, misses) if misses.size else None
    metrics: dict[str, float | None] = {**summarise_ranks(image_answers.ranks, captions.ranks)}
    metrics["mean_R@1"] = (float(metrics["i2t_R@1"] or 0) + float(metrics["t2i_R@1"] or 0)) / 2
    metrics |= totals.margin()
    metrics["auroc"] = found.auroc if found else None
    metrics["overlap"] = found.overlap if found else None
    metrics["threshold"] = found.threshold if found else None
    metrics["modality_gap"] = modality_gap(model.images, model.texts)
    return Alignment(
        model.name,
        metrics,
        image_answers,
        captions,
        torch.cat(totals.pair_ranks),
        torch.cat(totals.pair_values),
        totals.class_means(),
        _confused(rows, image_answers, captions),
    )


def chance(rows: AlignmentRows) -> dict[str, float]:
    """The ranking metrics of a random order: exact, from the number of hits of each query.

    Args:
        rows: The rows.

    Returns:
        The figures by name.
    """
    result: dict[str, float] = {}
    for direction, side, candidates in (("i2t", 0, len(rows.captions)), ("t2i", 1, len(rows.paths))):
        hits = torch.bincount(rows.hits[:, side]).numpy()
        recalls = chance_recall(hits, candidates, candidates)
        result |= {f"{direction}_R@{k}": float(recalls[min(k, candidates) - 1]) for k in K_VALUES}
        places = np.arange(1, candidates + 1)
        result[f"{direction}_MRR"] = float((np.diff(recalls, prepend=0.0) / places).sum())
        result[f"{direction}_median_rank"] = float(places[np.argmax(recalls >= 0.5 - 1e-12)])
    result["mean_R@1"] = (result["i2t_R@1"] + result["t2i_R@1"]) / 2
    return result | {"alignment_margin": 0.0, "auroc": 0.5}


def query_order(answers: Answers) -> Int[Tensor, " queries"]:
    """Queries from the best to the worst: by rank, then by how far the hit is ahead, then as they stand.

    Args:
        answers: Of one direction.

    Returns:
        The queries' numbers.
    """
    margins = answers.margins().nan_to_num(neginf=-torch.inf).numpy()
    return torch.from_numpy(np.lexsort((np.arange(len(margins)), margins, answers.ranks.numpy())))


def _answers(
    metric: Metric,
    queries: Tensor,
    candidates: Tensor,
    relevant: Callable[[int, int], Tensor],
    watch: Callable[[int, Tensor, Tensor, Tensor], None] | None = None,
    *,
    swap: bool = False,
) -> Answers:
    # Distinct once: equal candidates tie exactly, and the search for equal ones is not repeated for each block.
    distinct, places = distinct_rows(candidates)
    chunk = max(1, min(1024, _BLOCK // len(candidates)))
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        found = metric.scores(distinct, part).T if swap else metric.scores(part, distinct)
        scores, hits = spread(found, places), relevant(start, start + len(part))
        ranks = ranks_of_best_hit(scores, hits)
        hit, best_hit = scores.masked_fill(~hits, -torch.inf).max(dim=1)
        misses = scores.masked_fill(hits, -torch.inf)
        miss, best_miss = misses.max(dim=1)
        nothing = hits.all(dim=1)
        miss_value = metric.values(miss.masked_fill(nothing, 0)).masked_fill(nothing, -torch.inf)
        parts.append((ranks, best_hit, metric.values(hit), best_miss.masked_fill(nothing, -1), miss_value))
        if watch is not None:
            watch(start, scores, misses, metric.values(scores))
    return Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))


class _Totals:
    """Sums over the whole matrix, gathered while its blocks pass by."""

    def __init__(self, rows: AlignmentRows) -> None:
        self.rows = rows
        self.pair_ranks: list[Tensor] = []
        self.pair_values: list[Tensor] = []
        self.total = 0.0
        index_of = {label: index for index, label in enumerate(rows.classes)}
        self.of_image = torch.tensor([-1 if label is None else index_of[label] for label in rows.labels])
        self.of_caption = torch.zeros(len(rows.captions), len(index_of), dtype=torch.float64)
        for caption, classes in enumerate(rows.caption_classes):
            for label in classes:
                self.of_caption[caption, index_of[label]] = 1
        self.class_sums = torch.zeros(len(index_of), len(index_of), dtype=torch.float64)

    def add(self, start: int, scores: Tensor, misses: Tensor, values: Tensor) -> None:
        stop = start + len(scores)
        images = self.rows.hits[:, 0].contiguous()
        first, last = torch.searchsorted(images, torch.tensor([start, stop])).tolist()
        # Images with many captions have more pairs than the block has rows: a block's worth of them at a time.
        for part in self.rows.hits[first:last].split(max(1, len(scores))):
            row, caption = part[:, 0] - start, part[:, 1]
            own = scores[row, caption]
            self.pair_ranks.append(1 + (misses[row] >= own[:, None]).sum(dim=1))
            self.pair_values.append(values[row, caption])
        self.total += values.double().sum().item()
        if len(self.class_sums):
            labelled = (self.of_image[start:stop] >= 0).nonzero().flatten()
            sums = values[labelled].double() @ self.of_caption
            self.class_sums.index_add_(0, self.of_image[start:stop][labelled], sums)

    def margin(self) -> dict[str, float | None]:
        hits = torch.cat(self.pair_values).double()
        n_misses = len(self.rows.paths) * len(self.rows.captions) - len(hits)
        mean_hit = hits.mean().item()
        mean_miss = (self.total - hits.sum().item()) / n_misses if n_misses else None
        return {
            "alignment_margin": None if mean_miss is None else mean_hit - mean_miss,
            "mean_hit": mean_hit,
            "mean_miss": mean_miss,
        }

    def class_means(self) -> np.ndarray | None:
        if len(self.class_sums) < 2:
            return None
        images = torch.bincount(self.of_image[self.of_image >= 0], minlength=len(self.class_sums))
        return (self.class_sums / images[:, None] / self.of_caption.sum(dim=0)).numpy()


def _confused(rows: AlignmentRows, images: Answers, captions: Answers) -> list[dict[str, str | int]]:
    """Pairs of classes whose first answers are mixed up, the most frequent first; ``of`` is the class's queries."""
    found: Counter[tuple[str, str, str]] = Counter()
    asked: Counter[tuple[str, str]] = Counter()
    for index, label in enumerate(rows.labels):
        if label is None:
            continue
        asked["i2t", label] += 1
        answer = int(images.best_miss[index])
        if images.ranks[index] > 1 and label not in rows.caption_classes[answer]:
            taken = rows.caption_labels[answer]
            if taken is not None:
                found["i2t", label, taken] += 1
    for index, label in enumerate(rows.caption_labels):
        if label is None:
            continue
        asked["t2i", label] += 1
        taken = rows.labels[int(captions.best_miss[index])]
        if captions.ranks[index] > 1 and taken is not None and taken not in rows.caption_classes[index]:
            found["t2i", label, taken] += 1
    order = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [
        {"direction": direction, "class": label, "taken_for": taken, "n": n, "of": asked[direction, label]}
        for (direction, label, taken), n in order
    ]
