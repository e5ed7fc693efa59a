"""``AlignmentVisualizer``: plots of how images and texts fit together."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float

from domainclip.data.images.given import GivenImage, GivenImages, GivenTexts, image_list, is_one_image
from domainclip.errors import ConfigurationError, DataError, ShapeError
from domainclip.files import require_writable
from domainclip.metrics.modality_gap import modality_gap
from domainclip.metrics.retrieval import Groups, Matrix, _matrix_and_targets, _matrix_ranks, recall_from_ranks
from domainclip.metrics.separation import chance_recall
from domainclip.retrieval import RetrievalHit
from domainclip.similarity import Embeddings, as_embeddings

# The drawing itself is imported in the methods: matplotlib takes half a second that retrieval does not need.

_LOG = logging.getLogger(__name__)

Answer: TypeAlias = RetrievalHit | tuple[str | GivenImage, float]

_MOST_K = 100  # a person or a reranker looks at no more


class AlignmentVisualizer:
    """Draws into ``output_dir`` (made when first needed). Every method returns the path of the PNG it wrote.

    ``filename`` is relative to ``output_dir``, ``save_path`` to the working directory; both end in ``.png``. An
    existing file is replaced, whole or not at all. Labels may have any length, script and signs; where there are too
    many items to draw, some are left out evenly and the title says so. What counts as a hit is said as in
    ``AlignmentMetrics``: nothing (image i belongs to text i), ``targets`` (boolean, of the matrix's shape), or
    ``image_groups`` and ``text_groups``.

    Raises:
        ShapeError: In a method, where matrices, targets or labels do not fit or numbers are not finite.
    """

    def __init__(self, output_dir: str | Path = "outputs/visualizations") -> None:
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
        save_path: str | Path | None = None,
    ) -> Path:
        """Heat map, dark being similar.

        Args:
            similarity: ``[images, texts]``.
            image_labels: Names of the rows; where there are fewer, the rows after them are numbered.
            text_labels: Names of the columns, likewise.
            targets: Pairs that belong together, which are framed (up to 60 rows and columns).
            title: The heading.
            filename: The PNG's name in the output folder.
            save_path: The PNG's whole path instead.

        Returns:
            Its path.

        Raises:
            ShapeError: Labels or targets do not fit the matrix.
        """
        from domainclip.reports.plots.matrix import draw_similarity_matrix

        path, matrix = self._path(filename, save_path), _finite_matrix(similarity)
        image_labels = _labels_of("image_labels", image_labels, matrix.shape[0])
        text_labels = _labels_of("text_labels", text_labels, matrix.shape[1])
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
        query: GivenImages | GivenTexts,
        results: Sequence[Answer] | Sequence[Sequence[Answer]],
        *,
        relevant: Collection[int] | Sequence[Collection[int]] | None = None,
        title: str = "Retrieval",
        filename: str = "retrieval_results.png",
        save_path: str | Path | None = None,
    ) -> Path:
        """A sheet of queries with their answers, as ``ImageTextRetrieval`` returns them.

        At most 12 text queries or 6 image queries and 10 answers are shown.

        Args:
            query: One query, or a list. A ``str`` is a text, everything else an image.
            results: Its list of answers, or a list of lists. An answer is what ``ImageTextRetrieval`` gives, or a pair
                ``(text, score)``, or ``(image, score)`` for a text query; which place it had among the candidates,
                ``relevant`` is told by, is then its place in the list.
            relevant: Indices of the candidates that are right (one collection for a query, a list of collections for a
                list): answers are then marked as hits and misses.
            title: The heading.
            filename: The PNG's name in the output folder.
            save_path: The PNG's whole path instead.

        Returns:
            Its path.

        Raises:
            DataError: There is nothing to show.
            ImageError: An image cannot be read.
        """
        from domainclip.reports.plots.retrieval import draw_retrieval_results

        path = self._path(filename, save_path)
        single = isinstance(query, str) or is_one_image(query)
        given: Any = query
        asked = [given] if single else list(given)
        queries: Any = asked if all(isinstance(each, str) for each in asked) else _queries(asked)
        listed: Any = [results] if single else results
        answers = [_hits(rows) for rows in listed]
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
        save_path: str | Path | None = None,
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
            save_path: The PNG's whole path instead.

        Returns:
            Its path.

        Raises:
            ShapeError: There are no misses, or the shapes do not fit.
        """
        from domainclip.reports.plots.curves import draw_alignment_distribution

        path, matrix = self._path(filename, save_path), _finite_matrix(similarity)
        hits = _matrix_and_targets(torch.as_tensor(matrix), targets, image_groups, text_groups)[1].cpu().numpy()
        return draw_alignment_distribution(matrix[hits], matrix[~hits], title, path)

    def plot_recall_curves(
        self,
        similarity: Float[Matrix, "n_images n_texts"]
        | Mapping[str, Float[Matrix, "n_images n_texts"] | Sequence[float]],
        k_values: Sequence[int] | None = None,
        targets: Bool[Matrix, "n_images n_texts"] | None = None,
        image_groups: Groups | None = None,
        text_groups: Groups | None = None,
        *,
        max_k: int = _MOST_K,
        title: str = "Recall by the number of answers",
        filename: str = "recall_curves.png",
        save_path: str | Path | None = None,
    ) -> Path:
        """R@K for K = 1 … ``max_k`` (at most the candidates), both directions, with what a random order reaches; or
        recalls that were measured before.

        Ranks are those of ``AlignmentMetrics``, ties counting against the model.

        Args:
            similarity: A matrix, or one for each name ("before", "after"); all share the targets. With ``k_values``
                the recalls themselves, one for each K, by the name of the curve: ``{"i2t": […], "t2i": […]}``.
            k_values: The K of measured recalls, ascending.
            targets: Pairs that belong together; left out, row i and column i do, or what the groups say.
            image_groups: A group for each image.
            text_groups: A group for each text; equal groups belong together.
            max_k: The largest K.
            title: The heading.
            filename: The PNG's name in the output folder.
            save_path: The PNG's whole path instead.

        Returns:
            Its path.

        Raises:
            ConfigurationError: ``max_k`` is below 1.
            DataError: There is no matrix.
            ShapeError: The shapes do not fit, or a recall is none.
        """
        from domainclip.reports.plots.curves import draw_measured_recalls, draw_recall_curves

        path = self._path(filename, save_path)
        if k_values is not None:
            if not isinstance(similarity, Mapping):
                raise DataError('With k_values give the recalls by name: {"i2t": [0.5, 0.7], "t2i": [0.4, 0.6]}')
            return draw_measured_recalls(*_measured(similarity, k_values), title, path)
        if max_k < 1:
            raise ConfigurationError(f"max_k must be at least 1, got {max_k}")
        named: Mapping[str, Any] = similarity if isinstance(similarity, Mapping) else {"model": similarity}
        if not named:
            raise DataError("No similarity matrix given: there is no curve to draw")
        if any(np.ndim(values) == 1 for values in named.values()):
            raise DataError("These are recalls, not similarity matrices: give the K of each as k_values")
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
        save_path: str | Path | None = None,
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
            save_path: The PNG's whole path instead.

        Returns:
            Its path.

        Raises:
            ConfigurationError: "Invalid method".
            ShapeError: The shapes do not fit.
        """
        from domainclip.reports.plots.map import draw_embedding_map

        path = self._path(filename, save_path)
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

    def _path(self, filename: str, save_path: str | Path | None) -> Path:
        name, path = ("filename", self.output_dir / filename) if save_path is None else ("save_path", Path(save_path))
        path = path.expanduser()
        if path.suffix.lower() != ".png":
            given = filename if save_path is None else str(save_path)
            raise ConfigurationError(f"{name}={given!r}: plots are PNG files, so give a name that ends in .png")
        require_writable(path, name, is_file=True)
        return path


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


def _labels_of(name: str, labels: Sequence[object] | None, expected: int) -> Sequence[object] | None:
    if labels is None or len(labels) == expected:
        return labels
    if len(labels) > expected:
        raise ShapeError(f"{name} has {len(labels)} entries for {expected} rows: give one each")
    _LOG.warning("%s has %d entries for %d rows: the others are numbered", name, len(labels), expected)
    return [*labels, *range(len(labels), expected)]


def _queries(asked: Sequence[Any]) -> list[Any]:
    """Queries of a sheet of images; a string among them is left for ``_check_sheet`` to refuse."""
    return [each if isinstance(each, str) else image_list(each)[0] for each in asked]


def _hits(answers: Sequence[Answer]) -> list[RetrievalHit]:
    found: list[RetrievalHit] = []
    for place, answer in enumerate(answers):
        if isinstance(answer, RetrievalHit):
            found.append(answer)
            continue
        if not isinstance(answer, tuple | list) or len(answer) != 2 or not isinstance(answer[1], Real):
            raise DataError(f"Answer {place} is {answer!r:.80}: give (text, score), or (image, score) for a text query")
        item, score = answer
        if isinstance(item, Real):
            raise DataError(
                f"Answer {place} names its image by the number {item}: give the image itself, or the answers as "
                "retrieve_image returned them"
            )
        found.append(RetrievalHit(place, item if isinstance(item, str) else image_list(item)[0], float(score)))
    return found


def _measured(recalls: Mapping[str, Any], k_values: Sequence[int]) -> tuple[dict[str, np.ndarray], list[int]]:
    ks = [int(k) for k in k_values]
    if not recalls or not ks:
        raise DataError("No recalls given: there is no curve to draw")
    if min(ks) < 1 or any(after <= before for before, after in pairwise(ks)):
        raise ShapeError(f"k_values must be at least 1 and ascending, got {ks}")
    curves = {str(name): np.asarray(values, dtype=float) for name, values in recalls.items()}
    for name, values in curves.items():
        if values.shape != (len(ks),):
            raise ShapeError(f"{name!r} has recalls of shape {values.shape} for {len(ks)} k_values: give one for each")
        if not ((values >= 0) & (values <= 1)).all():
            raise ShapeError(f"{name!r} has a recall outside 0…1: {values.tolist()}")
    return curves, ks


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
