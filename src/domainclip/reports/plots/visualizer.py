"""``AlignmentVisualizer``: plots of how images and texts fit together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image

from domainclip.data.images.reader import ImageLike
from domainclip.errors import ConfigurationError, DataError, ShapeError
from domainclip.metrics.modality_gap import modality_gap
from domainclip.metrics.retrieval import Groups, Matrix, _matrix_and_targets, _matrix_ranks, recall_from_ranks
from domainclip.metrics.separation import chance_recall
from domainclip.retrieval import RetrievalHit
from domainclip.similarity import Embeddings, as_embeddings

# The drawing itself is imported in the methods: matplotlib takes half a second that retrieval does not need.

_MOST_K = 100  # a person or a reranker looks at no more


class AlignmentVisualizer:
    """Draws into ``output_dir`` (made when first needed). Every method returns the path of the PNG it wrote.

    ``filename`` is relative to ``output_dir`` and ends in ``.png``; an existing file is replaced, whole or not at
    all. Labels may have any length, script and signs; where there are too many items to draw, some are left out
    evenly and the title says so. What counts as a hit is said as in ``AlignmentMetrics``: nothing (image i belongs
    to text i), ``targets`` (boolean, of the matrix's shape), or ``image_groups`` and ``text_groups``.

    Raises:
        ShapeError: In a method, where matrices, targets or labels do not fit or numbers are not finite.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)

    def plot_similarity_matrix(
        self,
        similarity: Float[Matrix, "n_images n_texts"],
        image_labels: Sequence[object] | None = None,
        text_labels: Sequence[object] | None = None,
        *,
        targets: Bool[Matrix, "n_images n_texts"] | None = None,
        title: str = "Similarity of images and texts",
        filename: str = "similarity_matrix.png",
    ) -> Path:
        """Heat map, dark being similar.

        Args:
            similarity: ``[images, texts]``.
            image_labels: Names of the rows.
            text_labels: Names of the columns.
            targets: Pairs that belong together, which are framed (up to 60 rows and columns).
            title: The heading.
            filename: The PNG's name in the output folder.

        Returns:
            Its path.

        Raises:
            ShapeError: Labels or targets do not fit the matrix.
        """
        from domainclip.reports.plots.matrix import draw_similarity_matrix

        path, matrix = self._path(filename), _finite_matrix(similarity)
        _check_labels("image_labels", image_labels, matrix.shape[0])
        _check_labels("text_labels", text_labels, matrix.shape[1])
        hits = None
        if targets is not None:
            hits = torch.as_tensor(targets).cpu().numpy()
            if hits.dtype != bool or hits.shape != matrix.shape:
                raise ShapeError(
                    f"targets must be a boolean matrix of shape {matrix.shape}, got {hits.dtype} of {hits.shape}"
                )
        return draw_similarity_matrix(matrix, image_labels, text_labels, hits, title, path)

    def plot_retrieval_results(
        self,
        query: str | ImageLike | Sequence[str] | Sequence[ImageLike],
        results: Sequence[RetrievalHit] | Sequence[Sequence[RetrievalHit]],
        *,
        relevant: Collection[int] | Sequence[Collection[int]] | None = None,
        title: str = "Retrieval",
        filename: str = "retrieval_results.png",
    ) -> Path:
        """A sheet of queries with their answers, as ``ImageTextRetrieval`` returns them.

        At most 12 text queries or 6 image queries and 10 answers are shown.

        Args:
            query: One query, or a list. A ``str`` is a text, a PIL image or a ``Path`` is taken as an image.
            results: Its list of answers, or a list of lists.
            relevant: Indices of the candidates that are right (one collection for a query, a list of collections for a
                list): answers are then marked as hits and misses.
            title: The heading.
            filename: The PNG's name in the output folder.

        Returns:
            Its path.

        Raises:
            DataError: There is nothing to show.
            ImageError: An image cannot be read.
        """
        from domainclip.reports.plots.retrieval import draw_retrieval_results

        path = self._path(filename)
        single = isinstance(query, str | Path | Image.Image)
        queries: Any = [query] if single else list(query)  # type: ignore[arg-type]
        answers: Any = [results] if single else list(results)
        right: Any = None if relevant is None else [relevant] if single else list(relevant)
        _check_sheet(queries, answers, right)
        return draw_retrieval_results(queries, answers, right, title, path)

    def plot_alignment_distribution(
        self,
        similarity: Float[Matrix, "n_images n_texts"],
        targets: Bool[Matrix, "n_images n_texts"] | None = None,
        image_groups: Groups | None = None,
        text_groups: Groups | None = None,
        *,
        title: str = "Similarity of pairs",
        filename: str = "alignment_distribution.png",
    ) -> Path:
        """Distributions of the pairs that belong together and of those that do not, with AUROC and overlap.

        See ``metrics.separation`` for the two figures.

        Args:
            similarity: ``[images, texts]``.
            targets: Pairs that belong together; left out, row i and column i do, or what the groups say.
            image_groups: A group for each image.
            text_groups: A group for each text; equal groups belong together.
            title: The heading.
            filename: The PNG's name in the output folder.

        Returns:
            Its path.

        Raises:
            ShapeError: There are no misses, or the shapes do not fit.
        """
        from domainclip.reports.plots.curves import draw_alignment_distribution

        path, matrix = self._path(filename), _finite_matrix(similarity)
        hits = _matrix_and_targets(torch.as_tensor(matrix), targets, image_groups, text_groups)[1].cpu().numpy()
        return draw_alignment_distribution(matrix[hits], matrix[~hits], title, path)

    def plot_recall_curves(
        self,
        similarity: Float[Matrix, "n_images n_texts"] | Mapping[str, Float[Matrix, "n_images n_texts"]],
        targets: Bool[Matrix, "n_images n_texts"] | None = None,
        image_groups: Groups | None = None,
        text_groups: Groups | None = None,
        *,
        max_k: int = _MOST_K,
        title: str = "Recall by the number of answers",
        filename: str = "recall_curves.png",
    ) -> Path:
        """R@K for K = 1 … ``max_k`` (at most the candidates), both directions, with what a random order reaches.

        Ranks are those of ``AlignmentMetrics``, ties counting against the model.

        Args:
            similarity: A matrix, or one for each name ("before", "after"); all share the targets.
            targets: Pairs that belong together; left out, row i and column i do, or what the groups say.
            image_groups: A group for each image.
            text_groups: A group for each text; equal groups belong together.
            max_k: The largest K.
            title: The heading.
            filename: The PNG's name in the output folder.

        Returns:
            Its path.

        Raises:
            ConfigurationError: ``max_k`` is below 1.
            DataError: There is no matrix.
            ShapeError: The shapes do not fit.
        """
        from domainclip.reports.plots.curves import draw_recall_curves

        path = self._path(filename)
        if max_k < 1:
            raise ConfigurationError(f"max_k must be at least 1, got {max_k}")
        named = similarity if isinstance(similarity, Mapping) else {"model": similarity}
        if not named:
            raise DataError("No similarity matrix given: there is no curve to draw")
        curves, shapes, relevant = {}, set(), torch.empty(0)
        for name, values in named.items():
            matrix, relevant = _matrix_and_targets(values, targets, image_groups, text_groups)
            shapes.add(tuple(matrix.shape))
            if len(shapes) > 1:
                raise ShapeError(f"Similarity matrices of different shapes cannot share a plot: {sorted(shapes)}")
            ranks = _matrix_ranks(matrix, relevant)
            ks = (min(max_k, matrix.shape[1]), min(max_k, matrix.shape[0]))
            texts, images = (
                np.array([recall_from_ranks(side, k) for k in range(1, most + 1)])
                for side, most in zip(ranks, ks, strict=True)
            )
            curves[str(name)] = texts, images
        n_images, n_texts = relevant.shape
        chance = (
            chance_recall(relevant.sum(dim=1).cpu().numpy(), n_texts, min(max_k, n_texts)),
            chance_recall(relevant.sum(dim=0).cpu().numpy(), n_images, min(max_k, n_images)),
        )
        return draw_recall_curves(curves, chance, (n_texts, n_images), title, path)

    def plot_embedding_map(
        self,
        image_embeds: Float[Embeddings, "n_images dim"],
        text_embeds: Float[Embeddings, "n_texts dim"],
        labels: Sequence[object] | None = None,
        text_labels: Sequence[object] | None = None,
        *,
        method: str = "pca",
        seed: int = 0,
        title: str = "Images and texts in the embedding space",
        filename: str = "embedding_map.png",
    ) -> Path:
        """Both modalities in a plane, with the modality gap stated (see ``modality_gap``).

        Args:
            image_embeds: ``[images, dim]``.
            text_embeds: ``[texts, dim]``.
            labels: Colours the images, and the texts too where there are as many and ``text_labels`` is not given (row
                i is then a pair).
            text_labels: Colours the texts.
            method: ``pca``, or ``tsne`` (scikit-learn).
            seed: For the latter.
            title: The heading.
            filename: The PNG's name in the output folder.

        Returns:
            Its path.

        Raises:
            ConfigurationError: "Invalid method".
            ShapeError: The shapes do not fit.
        """
        from domainclip.reports.plots.map import draw_embedding_map

        path = self._path(filename)
        gap = modality_gap(image_embeds, text_embeds)  # checks both sides
        images, texts = (
            torch.nn.functional.normalize(as_embeddings(side).cpu().double(), dim=-1).numpy()
            for side in (image_embeds, text_embeds)
        )
        paired = len(images) == len(texts)
        if text_labels is None and paired:
            text_labels = labels
        _check_labels("labels", labels, len(images))
        _check_labels("text_labels", text_labels, len(texts))
        return draw_embedding_map(images, texts, labels, text_labels, paired, method, seed, gap, title, path)

    def _path(self, filename: str) -> Path:
        if not filename.lower().endswith(".png"):
            raise ConfigurationError(f"filename={filename!r}: plots are PNG files, so give a name that ends in .png")
        return self.output_dir / filename


def _finite_matrix(similarity: Matrix) -> np.ndarray:
    matrix = as_embeddings(similarity).cpu().numpy()
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ShapeError(f"Expected a 2D similarity matrix [n_images, n_texts], got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise ShapeError(f"The similarity of image {row} and text {column} is {matrix[row, column]}: not finite")
    return matrix


def _check_labels(name: str, labels: Sequence[object] | None, expected: int) -> None:
    if labels is not None and len(labels) != expected:
        raise ShapeError(f"{name} has {len(labels)} entries for {expected} rows: give one each")


def _check_sheet(
    queries: Sequence[object],
    answers: Sequence[Sequence[RetrievalHit]],
    relevant: Sequence[Collection[int]] | None,
) -> None:
    if not queries or not any(len(hits) for hits in answers):
        raise DataError("No query with answers given: there is nothing to show")
    for name, other in (("results", answers), ("relevant", relevant)):
        if other is not None and len(other) != len(queries):
            raise ShapeError(f"{name} has {len(other)} entries for {len(queries)} queries: give one each")
    of_text = isinstance(queries[0], str)
    if any(isinstance(query, str) != of_text for query in queries) or any(
        isinstance(hit.item, str) == of_text for hits in answers for hit in hits
    ):
        raise DataError(
            "A sheet shows text queries with images, or image queries with texts. Give an image as a PIL image "
            "or a pathlib.Path: a string is taken for a text"
        )
