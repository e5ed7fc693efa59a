"""The images of an alignment report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from domainclip.evaluation.alignment import Alignment, AlignmentRows, Embedded, Metric, query_order
from domainclip.metrics.retrieval import recall_from_ranks
from domainclip.metrics.separation import chance_recall
from domainclip.reports.plots.visualizer import AlignmentVisualizer
from domainclip.retrieval import RetrievalHit
from domainclip.words import counted

COMPARED = "_compared"
"""Ends the name of a plot of the other model."""

_SHEETS = ("image_to_texts", "text_to_images")
_ONE_MODEL = ("class_similarity", "pair_similarity", "distribution", "embedding_map", *_SHEETS)
PLOT_FILES = tuple(
    f"plots/{name}.png" for name in ("recall_curves", *_ONE_MODEL, *(name + COMPARED for name in _ONE_MODEL))
)
"""Every plot a report can have, relative to its folder."""

IMAGE_QUERIES, TEXT_QUERIES = 6, 8
_PAIRS_SHOWN = 24
_CHOSEN = "queries evenly spaced by rank, the best first"
_MOST_K = 100


def shown_queries(ranked: Int[Tensor, " queries"], most: int) -> list[int]:
    """Queries for a sheet, evenly spaced from the best to the worst, so that nobody has picked them.

    Args:
        ranked: Indices of the queries, the best first.
        most: How many at most.

    Returns:
        Their indices.
    """
    places = np.unique(np.linspace(0, len(ranked) - 1, min(most, len(ranked))).round().astype(int))
    return [int(ranked[place]) for place in places]


def draw(
    folder: Path,
    rows: AlignmentRows,
    models: Sequence[tuple[Embedded, Alignment]],
    metric: Metric,
    top_k: int,
    seed: int,
) -> list[str]:
    """Draw an alignment report's plots. Both sheets show the queries that the first model's ranks select.

    Args:
        folder: They go into its ``plots``.
        rows: The images and captions, and which belong together.
        models: The model of the report, and perhaps the one that it is compared with.
        metric: How embeddings are compared.
        top_k: Answers a query that are shown.
        seed: Of the samples that are drawn.

    Returns:
        The files written, relative to ``folder``.
    """
    visualizer = AlignmentVisualizer(folder / "plots")
    made = [_recall_curves(visualizer, rows, [found for _, found in reversed(models)])]
    images = shown_queries(query_order(models[0][1].images), IMAGE_QUERIES)
    captions = shown_queries(query_order(models[0][1].captions), TEXT_QUERIES)
    for index, (embedded, found) in enumerate(models):
        name = f" ({found.name})" if len(models) > 1 else ""
        plots = _Plots(visualizer, rows, embedded, metric, seed, name, f"{COMPARED if index else ''}.png")
        if found.class_similarity is not None:
            made.append(plots.class_similarity(found.class_similarity))
        made.append(plots.pair_similarity())
        if any(miss >= 0 for miss in found.images.best_miss.tolist()):
            made.append(plots.distribution())
        made += [plots.embedding_map(found), plots.image_to_texts(images, top_k), plots.text_to_images(captions, top_k)]
    return [path.relative_to(folder).as_posix() for path in made]


def _recall_curves(visualizer: AlignmentVisualizer, rows: AlignmentRows, models: Sequence[Alignment]) -> Path:
    """From the ranks, which are exact for any number of rows, and not from a matrix."""
    from domainclip.reports.plots.curves import draw_recall_curves

    candidates = len(rows.captions), len(rows.paths)
    most = tuple(min(_MOST_K, n) for n in candidates)

    def curve(ranks: Tensor, last: int) -> np.ndarray:
        return np.array([recall_from_ranks(ranks, k) for k in range(1, last + 1)])

    curves = {
        found.name: (curve(found.images.ranks, most[0]), curve(found.captions.ranks, most[1])) for found in models
    }
    by_chance = tuple(
        chance_recall(torch.bincount(rows.hits[:, side]).numpy(), candidates[side], most[side]) for side in (0, 1)
    )
    path = visualizer.output_dir / "recall_curves.png"
    return draw_recall_curves(curves, (by_chance[0], by_chance[1]), candidates, "Recall by the number of answers", path)


@dataclass(frozen=True)
class _Plots:
    """The plots of one model. ``name``: what titles add to tell it from the other; ``end``: the end of file names."""

    visualizer: AlignmentVisualizer
    rows: AlignmentRows
    model: Embedded
    metric: Metric
    seed: int
    name: str
    end: str

    def class_similarity(self, means: np.ndarray) -> Path:
        classes = self.rows.classes
        return self.visualizer.plot_similarity_matrix(
            means,
            classes,
            classes,
            targets=np.eye(len(classes), dtype=bool),
            title=f"Mean similarity of each class's images and captions{self.name}",
            filename=f"class_similarity{self.end}",
        )

    def pair_similarity(self) -> Path:
        rows = self.rows
        images, texts = rows.sample(self.seed, _PAIRS_SHOWN)
        # Classes side by side, so that what is mixed up within a class and between classes shows as blocks.
        images, texts = _by_class(images, rows.labels), _by_class(texts, rows.caption_labels)
        part = len(images) < len(rows.paths) or len(texts) < len(rows.captions)
        shown = f"{counted(len(images), 'image')} and {counted(len(texts), 'caption')}"
        drawn = f", {shown} drawn by seed {self.seed}" if part else ""
        return self.visualizer.plot_similarity_matrix(
            self.metric.matrix(self.model.images[images], self.model.texts[texts]),
            [rows.paths[image].name for image in images],
            [rows.captions[text] for text in texts],
            targets=rows.targets(images, texts),
            title=f"Similarity of images and captions{self.name}{drawn}",
            filename=f"pair_similarity{self.end}",
        )

    def distribution(self) -> Path:
        images, texts = self.rows.sample(self.seed)
        return self.visualizer.plot_alignment_distribution(
            self.metric.matrix(self.model.images[images], self.model.texts[texts]),
            targets=self.rows.targets(images, texts),
            title=f"Similarity of images and captions{self.name}",
            filename=f"distribution{self.end}",
        )

    def embedding_map(self, found: Alignment) -> Path:
        from domainclip.reports.plots.map import draw_embedding_map

        # Not by the visualizer, which joins row i to row i wherever there happen to be as many of both.
        rows = self.rows
        one_to_one = torch.equal(rows.hits, torch.arange(len(rows.paths))[:, None].expand(-1, 2))
        one_to_one &= len(rows.paths) == len(rows.captions)
        images, texts = (F.normalize(side.double(), dim=-1).numpy() for side in (self.model.images, self.model.texts))
        labels, text_labels = (
            [label or "no label" for label in side] if rows.classes else None
            for side in (rows.labels, rows.caption_labels)
        )
        gap = float(found.metrics["modality_gap"] or 0)
        title = f"Images and captions in the embedding space{self.name}"
        path = self.visualizer.output_dir / f"embedding_map{self.end}"
        return draw_embedding_map(images, texts, labels, text_labels, one_to_one, "pca", 0, gap, title, path)

    def image_to_texts(self, images: list[int], top_k: int) -> Path:
        rows, model = self.rows, self.model
        found = self.metric.computer.nearest(model.images[images], model.texts, min(top_k, len(rows.captions)))
        return self.visualizer.plot_retrieval_results(
            [rows.paths[query] for query in images],
            _answers(found, rows.captions),
            relevant=[_hits(rows.image_hits, query) for query in images],
            title=f"Captions found for images{self.name}; {_CHOSEN}",
            filename=f"image_to_texts{self.end}",
        )

    def text_to_images(self, captions: list[int], top_k: int) -> Path:
        rows, model, most = self.rows, self.model, min(top_k, len(self.rows.paths))
        found = self.metric.computer.nearest(model.images, model.texts[captions], most, queries="texts")
        return self.visualizer.plot_retrieval_results(
            [rows.captions[query] for query in captions],
            _answers(found, rows.paths),
            relevant=[_hits(rows.caption_hits, query) for query in captions],
            title=f"Images found for captions{self.name}; {_CHOSEN}",
            filename=f"text_to_images{self.end}",
        )


def _answers(found: tuple[Tensor, Tensor], candidates: Sequence[Any]) -> list[list[RetrievalHit]]:
    scores, places = found
    return [
        [RetrievalHit(index, candidates[index], score) for index, score in zip(*row, strict=True)]
        for row in zip(places.tolist(), scores.tolist(), strict=True)
    ]


def _by_class(numbers: Int[Tensor, " n"], labels: Sequence[str | None]) -> Int[Tensor, " n"]:
    return torch.tensor(sorted(numbers.tolist(), key=lambda n: (labels[n] is None, labels[n] or "", n)))


def _hits(relevant: Callable[[int, int], Tensor], query: int) -> list[int]:
    return relevant(query, query + 1)[0].nonzero().flatten().tolist()
