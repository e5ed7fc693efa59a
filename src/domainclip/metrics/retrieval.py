"""How well images find their captions and captions their images.

Everything follows from one number per query, the *rank of its best hit*:

    rank = 1 + (misses scored higher) + (misses scored exactly the same)

Other hits of the same query never count against it. Ties count against the model: a collapsed encoder, for
which everything is equally similar, then ranks last, where "first index wins" could rank it first.

R@K is the fraction of queries with a rank of at most K (the convention of the CLIP and Flickr30k/COCO retrieval
papers: a hit *rate*, not the fraction of all hits found). It means little when K is close to the number of
candidates, so the numbers of candidates are always part of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from domainclip.errors import ShapeError
from domainclip.metrics.distinct import distinct_rows, spread
from domainclip.similarity import as_numbers
from domainclip.words import some_of

K_VALUES = (1, 5, 10)

Matrix: TypeAlias = Tensor | np.ndarray
Groups: TypeAlias = Sequence[Hashable] | Tensor | np.ndarray
# Rows start:stop of a [queries, candidates] matrix, made when asked for, so that the whole is never held.
ScoreRows: TypeAlias = Callable[[int, int], Tensor]
RelevanceRows: TypeAlias = Callable[[int, int], Tensor]


def ranks_of_best_hit(
    scores: Float[Tensor, "queries candidates"], relevant: Bool[Tensor, "queries candidates"]
) -> Int[Tensor, " queries"]:
    """Rank of each query's best hit among its misses, 1 being the best; ties count against the hit.

    Args:
        scores: ``[queries, candidates]``; higher is more similar.
        relevant: Which candidates are hits, of the same shape.

    Returns:
        ``[queries]``, from 1.

    Raises:
        ShapeError: A score is NaN (which would compare as "not better" and so rank first), a query has no hit, so that
            its rank is undefined, or the shapes differ.
    """
    if scores.shape != relevant.shape:
        raise ShapeError(
            f"Scores of shape {tuple(scores.shape)} and targets of shape {tuple(relevant.shape)} differ: "
            "give one target for every score"
        )
    if torch.isnan(scores).any():
        raise ShapeError(
            "The similarities contain NaN, so nothing can be ranked: the model has diverged, or an embedding "
            "is all zeros"
        )
    without = ~relevant.any(dim=1)
    if without.any():
        raise ShapeError(
            f"{some_of(int(without.sum()), len(relevant), 'query', 'have')} no relevant candidate "
            f"(first: row {int(without.nonzero()[0])}): leave them out or give them a target"
        )
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    return 1 + ((scores >= best) & ~relevant).sum(dim=1)


def _chunked(scores: ScoreRows, relevant: RelevanceRows, n_queries: int, chunk: int) -> Int[Tensor, " queries"]:
    if chunk < 1:
        raise ShapeError(f"chunk must be at least 1, got {chunk}")
    parts = []
    for start in range(0, n_queries, chunk):
        stop = min(start + chunk, n_queries)
        rows = scores(start, stop)
        parts.append(ranks_of_best_hit(rows, relevant(start, stop).to(rows.device)).cpu())
    return torch.cat(parts)


def chunked_ranks(
    query_embeds: Float[Tensor, "queries dim"],
    candidate_embeds: Float[Tensor, "candidates dim"],
    relevant: RelevanceRows,
    chunk: int = 1024,
) -> Int[Tensor, " queries"]:
    """Ranks from embeddings, holding ``chunk`` × candidates similarities at a time.

    The similarity is the dot product: pass L2-normalised embeddings for the cosine.

    Args:
        query_embeds: ``[queries, dim]``.
        candidate_embeds: ``[candidates, dim]``.
        relevant: ``relevant(start, stop)`` gives the hits of those queries, boolean ``[stop - start, candidates]``.
        chunk: Queries ranked at once.

    Returns:
        Ranks from 1, int64 on the CPU.

    Raises:
        ShapeError: Embeddings are not 2D, empty or of different width, ``chunk`` is below 1, or as for
            ``ranks_of_best_hit``.
    """
    for side in (query_embeds, candidate_embeds):
        if side.ndim != 2 or len(side) == 0:
            raise ShapeError(f"Expected 2D embeddings [n, dim] with n >= 1, got shape {tuple(side.shape)}")
    if query_embeds.shape[1] != candidate_embeds.shape[1]:
        raise ShapeError(
            f"Embedding dimension mismatch: {query_embeds.shape[1]} against {candidate_embeds.shape[1]}. "
            "Both sides must come from the same model's projection"
        )
    queries = _floating(query_embeds)
    # Equal candidates must tie exactly: a last bit between them would decide whether one counts against the other.
    candidates, places = distinct_rows(_floating(candidate_embeds))

    def scores(start: int, stop: int) -> Tensor:
        return spread(queries[start:stop] @ candidates.T, places)

    return _chunked(scores, relevant, len(queries), chunk)


def retrieval_ranks(
    image_embeds: Float[Tensor, "images dim"],
    text_embeds: Float[Tensor, "texts dim"],
    image_groups: Groups | None = None,
    text_groups: Groups | None = None,
    chunk: int = 1024,
) -> tuple[Int[Tensor, " images"], Int[Tensor, " texts"]]:
    """Ranks in both directions from L2-normalised embeddings, without holding the similarity matrix.

    An image and a text with equal group ids are hits of each other; without groups row i belongs to row i.

    Args:
        image_embeds: ``[images, dim]``.
        text_embeds: ``[texts, dim]``.
        image_groups: An id for each image, or None.
        text_groups: An id for each text, or None.
        chunk: Queries ranked at once.

    Returns:
        ``(i2t_ranks, t2i_ranks)``, int64 on the CPU, 1 being the best.

    Raises:
        ShapeError: Group ids do not fit the rows or are given for one side alone, the numbers of images and texts
            differ without them, or as for ``chunked_ranks``.
    """
    images, texts = _group_ids(image_groups, text_groups, len(image_embeds), len(text_embeds))
    return (
        chunked_ranks(image_embeds, text_embeds, lambda a, b: images[a:b, None] == texts[None], chunk),
        chunked_ranks(text_embeds, image_embeds, lambda a, b: texts[a:b, None] == images[None], chunk),
    )


def recall_from_ranks(ranks: Int[Tensor, " queries"], k: int) -> float:
    """Fraction of queries whose rank is at most ``k``, in 0…1.

    Args:
        ranks: From 1.
        k: How many answers are looked at.

    Returns:
        The fraction.
    """
    return (ranks <= k).double().mean().item()


def reciprocal_rank_from_ranks(ranks: Int[Tensor, " queries"]) -> float:
    """Mean of 1 / rank, in 0…1 (1 is the best).

    Args:
        ranks: From 1.

    Returns:
        The mean.
    """
    return (1.0 / ranks.double()).mean().item()


def median_from_ranks(ranks: Int[Tensor, " queries"]) -> float:
    """Median rank, from 1 (the best); the mean of the middle two for an even number of queries.

    Args:
        ranks: From 1.

    Returns:
        The median.
    """
    # torch.median answers the lower of the middle two, which would flatter the model.
    return float(np.median(ranks.numpy()))


def summarise_ranks(
    i2t_ranks: Int[Tensor, " images"], t2i_ranks: Int[Tensor, " texts"], k: Sequence[int] = K_VALUES
) -> dict[str, float]:
    """``i2t_R@K`` for each K, ``i2t_MRR``, ``i2t_median_rank``, and the same for ``t2i``.

    Args:
        i2t_ranks: Of images.
        t2i_ranks: Of texts.
        k: How many answers are looked at.

    Returns:
        The figures by name.
    """
    result: dict[str, float] = {}
    for direction, ranks in (("i2t", i2t_ranks), ("t2i", t2i_ranks)):
        result |= {f"{direction}_R@{value}": recall_from_ranks(ranks, value) for value in k}
        result[f"{direction}_MRR"] = reciprocal_rank_from_ranks(ranks)
        result[f"{direction}_median_rank"] = median_from_ranks(ranks)
    return result


class AlignmentMetrics:
    """Retrieval metrics of one similarity matrix [n_images, n_texts], a tensor or a numpy array.

    What counts as a hit is said in one of three ways, the same for every method: nothing (the matrix is square and
    image i belongs to text i), ``targets`` (a boolean matrix of the same shape), or ``image_groups`` and
    ``text_groups`` (one id per image and per text; equal ids are hits).

    Raises:
        ShapeError: In a method, where a matrix, targets or groups do not fit, a similarity is NaN, or a query has no
            hit.
    """

    @staticmethod
    def compute_all(
        similarity: Matrix,
        targets: Matrix | None = None,
        image_groups: Groups | None = None,
        text_groups: Groups | None = None,
        k_values: int | Sequence[int] = K_VALUES,
    ) -> dict[str, float]:
        """All of what follows in one flat dictionary, with the candidate counts ``n_images``, ``n_texts``.

        ``alignment_margin`` is the alignment score minus the mean similarity of the misses: 0 for a collapsed model,
        whatever its level of similarity, and NaN where every pair is a hit.

        Args:
            similarity: Similarities ``[n_images, n_texts]``, a tensor or an array.
            targets: Boolean hits of the same shape.
            image_groups: An id for each image; equal ids are hits.
            text_groups: An id for each text.
            k_values: How many answers are looked at.

        Returns:
            The figures by name.
        """
        matrix, relevant = _matrix_and_targets(similarity, targets, image_groups, text_groups)
        return {
            **summarise_ranks(*_matrix_ranks(matrix, relevant), k=_k_values(k_values)),
            **_alignment(matrix, relevant),
            "n_images": matrix.shape[0],
            "n_texts": matrix.shape[1],
        }

    @staticmethod
    def recall_at_k(
        similarity: Matrix,
        k: int | Sequence[int] = K_VALUES,
        targets: Matrix | None = None,
        image_groups: Groups | None = None,
        text_groups: Groups | None = None,
    ) -> dict[str, float]:
        """``i2t_R@K`` and ``t2i_R@K`` for each K asked for, in 0…1.

        Args:
            similarity: Similarities ``[n_images, n_texts]``, a tensor or an array.
            k: How many answers are looked at.
            targets: Boolean hits of the same shape.
            image_groups: An id for each image; equal ids are hits.
            text_groups: An id for each text.

        Returns:
            The figures by name.
        """
        ranks = _matrix_ranks(*_matrix_and_targets(similarity, targets, image_groups, text_groups))
        return {
            f"{direction}_R@{value}": recall_from_ranks(found, value)
            for direction, found in zip(("i2t", "t2i"), ranks, strict=True)
            for value in _k_values(k)
        }

    @staticmethod
    def mean_reciprocal_rank(
        similarity: Matrix,
        targets: Matrix | None = None,
        image_groups: Groups | None = None,
        text_groups: Groups | None = None,
    ) -> dict[str, float]:
        """``i2t_MRR`` and ``t2i_MRR``, in 0…1.

        Args:
            similarity: Similarities ``[n_images, n_texts]``, a tensor or an array.
            targets: Boolean hits of the same shape.
            image_groups: An id for each image; equal ids are hits.
            text_groups: An id for each text.

        Returns:
            The figures by name.
        """
        i2t, t2i = _matrix_ranks(*_matrix_and_targets(similarity, targets, image_groups, text_groups))
        return {"i2t_MRR": reciprocal_rank_from_ranks(i2t), "t2i_MRR": reciprocal_rank_from_ranks(t2i)}

    @staticmethod
    def median_rank(
        similarity: Matrix,
        targets: Matrix | None = None,
        image_groups: Groups | None = None,
        text_groups: Groups | None = None,
    ) -> dict[str, float]:
        """``i2t_median_rank`` and ``t2i_median_rank``, from 1 (the best).

        Args:
            similarity: Similarities ``[n_images, n_texts]``, a tensor or an array.
            targets: Boolean hits of the same shape.
            image_groups: An id for each image; equal ids are hits.
            text_groups: An id for each text.

        Returns:
            The figures by name.
        """
        i2t, t2i = _matrix_ranks(*_matrix_and_targets(similarity, targets, image_groups, text_groups))
        return {"i2t_median_rank": median_from_ranks(i2t), "t2i_median_rank": median_from_ranks(t2i)}

    @staticmethod
    def compute_alignment_score(
        similarity: Matrix,
        targets: Matrix | None = None,
        image_groups: Groups | None = None,
        text_groups: Groups | None = None,
    ) -> float:
        """Mean similarity of the hits, in the units of the matrix: of a square matrix the mean of its diagonal.

        Its level alone says little, because CLIP's two modalities sit apart: see ``alignment_margin`` of
        ``compute_all``.

        Args:
            similarity: Similarities ``[n_images, n_texts]``, a tensor or an array.
            targets: Boolean hits of the same shape.
            image_groups: An id for each image; equal ids are hits.
            text_groups: An id for each text.

        Returns:
            The score, in the units of the matrix.
        """
        return _alignment(*_matrix_and_targets(similarity, targets, image_groups, text_groups))["alignment_score"]


def _alignment(matrix: Tensor, relevant: Tensor) -> dict[str, float]:
    if torch.isnan(matrix).any():
        raise ShapeError("The similarities contain NaN: the model has diverged, or an embedding is all zeros")
    hits, misses = matrix[relevant].mean(), matrix[~relevant].mean()
    return {"alignment_score": hits.item(), "alignment_margin": (hits - misses).item()}


def _matrix_ranks(matrix: Tensor, relevant: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    return (
        _chunked(lambda a, b: matrix[a:b], lambda a, b: relevant[a:b], len(matrix), chunk),
        _chunked(lambda a, b: matrix.T[a:b], lambda a, b: relevant.T[a:b], len(matrix.T), chunk),
    )


def _matrix_and_targets(
    similarity: Matrix, targets: Matrix | None, image_groups: Groups | None, text_groups: Groups | None
) -> tuple[Tensor, Tensor]:
    matrix = as_numbers(similarity).detach()
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ShapeError(f"Expected a 2D similarity matrix [n_images, n_texts], got shape {tuple(matrix.shape)}")
    matrix = _floating(matrix)
    if targets is None:
        images, texts = _group_ids(image_groups, text_groups, *matrix.shape)
        return matrix, (images[:, None] == texts[None]).to(matrix.device)
    if image_groups is not None or text_groups is not None:
        raise ShapeError("Give either targets or image_groups and text_groups, not both")
    relevant = torch.as_tensor(targets)
    if relevant.dtype != torch.bool or relevant.shape != matrix.shape:
        raise ShapeError(
            f"targets must be a boolean matrix of shape {tuple(matrix.shape)} (True where image and text "
            f"belong together), got {relevant.dtype} of shape {tuple(relevant.shape)}"
        )
    return matrix, relevant.to(matrix.device)


def _group_ids(
    image_groups: Groups | None, text_groups: Groups | None, n_images: int, n_texts: int
) -> tuple[Int[Tensor, " images"], Int[Tensor, " texts"]]:
    """Whole numbers in place of arbitrary ids, the same number for the same id on both sides."""
    if image_groups is None and text_groups is None:
        if n_images != n_texts:
            raise ShapeError(
                f"Expected a square similarity matrix, got {n_images} images and {n_texts} texts. Where "
                "image i does not belong to text i, pass targets (a boolean matrix) or image_groups and "
                "text_groups"
            )
        return torch.arange(n_images), torch.arange(n_texts)
    if image_groups is None or text_groups is None:
        raise ShapeError("image_groups and text_groups belong together: give both")
    numbers: dict[Hashable, int] = {}
    sides = []
    for name, groups, expected in (
        ("image_groups", image_groups, n_images),
        ("text_groups", text_groups, n_texts),
    ):
        ids = groups.tolist() if isinstance(groups, Tensor | np.ndarray) else list(groups)
        if len(ids) != expected:
            raise ShapeError(f"{name} has {len(ids)} ids for {expected} rows: give one id per row")
        if None in ids:
            raise ShapeError(f"{name} has no id (None) in row {ids.index(None)}: give it one or leave the row out")
        sides.append(torch.tensor([numbers.setdefault(group, len(numbers)) for group in ids]))
    return sides[0], sides[1]


def _floating(values: Tensor) -> Tensor:
    """Float32 or wider. Widening half precision keeps its ties, which is what the ranks depend on."""
    if values.dtype in (torch.float32, torch.float64):
        return values
    return values.float() if values.is_floating_point() else values.double()


def _k_values(k: int | Sequence[int]) -> list[int]:
    values = list(k) if isinstance(k, Sequence | np.ndarray | Tensor) and not isinstance(k, str) else [k]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ShapeError(f"k must be at least 1, and a whole number, got {value!r}")
    return values
