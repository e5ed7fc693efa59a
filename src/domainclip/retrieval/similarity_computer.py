"""Similarities of many images to many texts: whole, in chunks, or only the best few of each row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from domainclip.errors import ConfigurationError, ShapeError
from domainclip.metrics.distinct import distinct_rows, spread
from domainclip.similarity import Embeddings, Similarity, as_embeddings, check_embeddings, make_similarity

_SCORES_AT_ONCE = 4_194_304  # of a chunk of nearest: 16 MiB in float32, and a few times that while it is ranked


class SimilarityComputer:
    """Compares embeddings by a named metric.

    Embeddings are tensors or numpy arrays. Half precision and integers are widened to float32, float64 stays; the
    answer is a tensor on the images' device, without gradient.

    Args:
        metric: A name of ``domainclip.similarity.SIMILARITIES`` ("cosine", "dot", "euclidean", …) or a callable that
            takes images ``[n, dim]`` and texts ``[m, dim]`` and returns ``[n, m]``, larger being nearer (a trained
            ``nn.Module``, for example; a metric that learns and is given by name starts untrained).
        normalize: Brings every row to length 1 before that, which makes "dot" the cosine and "euclidean" rank as the
            cosine does.

    Raises:
        ConfigurationError: "Invalid metric": the name is unknown, or it is neither a name nor a callable object.
        ShapeError: By every method: "Expected 2D embeddings", "Embedding dimension mismatch", or the metric answers
            with another shape than ``[n, m]``.
    """

    def __init__(self, metric: str | Similarity = "cosine", normalize: bool = True) -> None:
        if not isinstance(metric, str) and (isinstance(metric, type) or not callable(metric)):
            raise ConfigurationError(
                f"Invalid metric {metric!r}: give a name, or a callable (an object, not its class) that compares "
                "images [n, dim] with texts [m, dim]"
            )
        self.metric = metric
        self.normalize = normalize
        self._similarity = make_similarity(metric)

    def compute(
        self, image_embeds: Float[Embeddings, "n_images dim"], text_embeds: Float[Embeddings, "n_texts dim"]
    ) -> Float[Tensor, "n_images n_texts"]:
        """Compare every image with every text.

        Args:
            image_embeds: One row an image.
            text_embeds: One row a text.

        Returns:
            Similarities, the larger the nearer.

        Raises:
            ShapeError: The embeddings do not fit, or the metric's answer does not.
        """
        return self._compare(*self._prepared(image_embeds, text_embeds))

    def batch_compute(
        self,
        image_embeds: Float[Embeddings, "n_images dim"],
        text_embeds: Float[Embeddings, "n_texts dim"],
        batch_size: int = 1024,
    ) -> Float[Tensor, "n_images n_texts"]:
        """The same, ``batch_size`` images at a time, for metrics that need more room than their result.

        Nothing is approximated, but a matrix product of another height may be added up in another order: the
        numbers are those of ``compute`` up to float32's rounding.

        Args:
            image_embeds: One row an image.
            text_embeds: One row a text.
            batch_size: Images at a time.

        Returns:
            Similarities, the larger the nearer.

        Raises:
            ConfigurationError: ``batch_size`` is below 1.
            ShapeError: The embeddings do not fit, or the metric's answer does not.
        """
        if batch_size < 1:
            raise ConfigurationError(f"Batch size must be positive, got batch_size={batch_size}")
        images, texts = self._prepared(image_embeds, text_embeds)
        result = images.new_empty(len(images), len(texts))
        for start in range(0, len(images), batch_size):
            result[start : start + batch_size] = self._compare(images[start : start + batch_size], texts)
        return result

    def top_k(
        self, similarity: Float[Embeddings, "n_images n_texts"], k: int = 5, dim: int = 1
    ) -> tuple[Tensor, Int[Tensor, ...]]:
        """The ``k`` largest similarities of each row or column of a matrix.

        Of equal ones the lower index comes first.

        Args:
            similarity: What ``compute`` gave.
            k: Within 1…candidates.
            dim: 1: of each row, the best texts of an image. 0: of each column, the best images of a text.

        Returns:
            Values and indices, the best first, ``[n_images, k]`` for ``dim=1`` and ``[k, n_texts]`` for ``dim=0``.

        Raises:
            ShapeError: "top_k must be in range": k is not within 1…candidates; the matrix is not 2D, or contains NaN.
            ConfigurationError: ``dim`` is neither 0 nor 1.
        """
        matrix = as_embeddings(similarity)
        if matrix.ndim != 2:
            raise ShapeError(f"Expected a 2D similarity matrix [n_images, n_texts], got shape {tuple(matrix.shape)}")
        if isinstance(dim, bool) or dim not in (0, 1, -1, -2):
            raise ConfigurationError(f"dim must be 1 (the best of each row) or 0 (of each column), got {dim!r}")
        along_rows = dim in (1, -1)
        rows = matrix if along_rows else matrix.T
        check_top_k(k, rows.shape[1])
        values, indices = stable_top_k(rows, k)
        return (values, indices) if along_rows else (values.T, indices.T)

    def nearest(
        self,
        image_embeds: Float[Embeddings, "n_images dim"],
        text_embeds: Float[Embeddings, "n_texts dim"],
        k: int,
        queries: Literal["images", "texts"] = "images",
    ) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
        """The ``k`` best texts of each image; never holds the whole matrix.

        Equal candidates score exactly equal, and of equal scores the lower index comes first, so the same arguments
        always have the same answer.

        Args:
            image_embeds: One row an image.
            text_embeds: One row a text.
            k: Within 1…candidates.
            queries: "texts" gives the best images of each text instead.

        Returns:
            Scores and indices, the best first.

        Raises:
            ShapeError: "top_k must be in range": k is not within 1…candidates; NaN would have to be ranked; or
                embeddings do not fit.
            ConfigurationError: ``queries`` is another word.
        """
        if queries not in ("images", "texts"):
            raise ConfigurationError(f"queries must be 'images' or 'texts', got {queries!r}")
        images, texts = self._prepared(image_embeds, text_embeds)
        rows, candidates = (images, texts) if queries == "images" else (texts, images)
        check_top_k(k, len(candidates))
        scores, indices = [rows.new_empty(0, k)], [torch.empty(0, k, dtype=torch.long, device=rows.device)]
        for chunk in self._score_rows(rows, candidates, swap=queries == "texts"):
            best, places = stable_top_k(chunk, k)
            scores.append(best)
            indices.append(places)
        return torch.cat(scores), torch.cat(indices)

    def _score_rows(self, rows: Tensor, candidates: Tensor, swap: bool) -> Iterator[Tensor]:
        distinct, places = distinct_rows(candidates)
        chunk = max(1, _SCORES_AT_ONCE // len(candidates))
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            # A learned metric tells images from texts: the order of its arguments matters.
            scores = self._compare(distinct, part).T if swap else self._compare(part, distinct)
            yield spread(scores, places)

    @torch.no_grad()
    def _compare(self, images: Tensor, texts: Tensor) -> Tensor:
        scores = self._similarity(images, texts)
        if scores.shape != (len(images), len(texts)):
            raise ShapeError(
                f"The metric answered {len(images)} images and {len(texts)} texts with shape {tuple(scores.shape)}: "
                "it must return one row per image and one column per text"
            )
        return scores

    def _prepared(self, image_embeds: Embeddings, text_embeds: Embeddings) -> tuple[Tensor, Tensor]:
        images, texts = as_embeddings(image_embeds), as_embeddings(text_embeds)
        check_embeddings(images, texts)
        dtype = torch.promote_types(images.dtype, texts.dtype)
        images, texts = images.to(dtype), texts.to(images.device, dtype)
        return (F.normalize(images, dim=-1), F.normalize(texts, dim=-1)) if self.normalize else (images, texts)


def check_top_k(k: int, n_candidates: int) -> None:
    """Check that so many can be chosen.

    Args:
        k: How many are asked for.
        n_candidates: How many there are.

    Raises:
        ShapeError: "top_k must be in range": ``k`` is no integer within 1…candidates.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= n_candidates:
        raise ShapeError(
            f"top_k must be in range 1…{n_candidates}, got {k!r}: there are {n_candidates} candidates to choose from"
        )


def stable_top_k(
    scores: Float[Tensor, "queries candidates"], k: int
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """``torch.topk`` with a rule for equal scores: the lower index comes first, and is kept where only some fit.

    Args:
        scores: One row a query; the larger the better.
        k: At most the number of candidates.

    Returns:
        Scores and indices, the best first.

    Raises:
        ShapeError: A score is NaN, which has no place in an order.
    """
    if torch.isnan(scores).any():
        raise ShapeError(
            "The similarities contain NaN, so nothing can be ranked: the model has diverged, or an embedding is not "
            "finite"
        )
    worst = torch.topk(scores, k, dim=1).values[:, -1:]
    above, equal = scores > worst, scores == worst
    room = k - above.sum(dim=1, keepdim=True)
    kept = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))
    indices = kept.nonzero()[:, 1].view(len(scores), k)  # exactly k a row, in ascending order
    best, order = scores.gather(1, indices).sort(dim=1, descending=True, stable=True)
    return best, indices.gather(1, order)
