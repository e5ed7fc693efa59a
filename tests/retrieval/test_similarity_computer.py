"""Similarities against float64 loops; the best few against a full, stable sort."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from domainclip.errors import ConfigurationError, ShapeError
from domainclip.metrics.distinct import distinct_rows, spread
from domainclip.retrieval import similarity_computer
from domainclip.retrieval.similarity_computer import SimilarityComputer, stable_top_k


def rows(n: int, dim: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def by_loop(metric: str, normalize: bool, images: Tensor, texts: Tensor) -> np.ndarray:
    found = np.empty((len(images), len(texts)))
    for i, image in enumerate(images.double().numpy()):
        for t, text in enumerate(texts.double().numpy()):
            a, b = (image / np.linalg.norm(image), text / np.linalg.norm(text)) if normalize else (image, text)
            found[i, t] = {
                "cosine": lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b),
                "dot": lambda a, b: a @ b,
                "euclidean": lambda a, b: -np.linalg.norm(a - b),
            }[metric](a, b)
    return found


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_compute_equals_a_loop_whole_and_in_chunks(metric: str, normalize: bool) -> None:
    images, texts = rows(11, seed=1), rows(7, seed=2)
    computer = SimilarityComputer(metric, normalize)
    expected = by_loop(metric, normalize, images, texts)
    np.testing.assert_allclose(computer.compute(images, texts), expected, atol=2e-5)
    for batch_size in (1, 3, 11, 50):
        np.testing.assert_allclose(computer.batch_compute(images, texts, batch_size), expected, atol=2e-5)


def test_chunks_are_exactly_the_whole_where_float32_is_exact() -> None:
    images, texts = rows(100, seed=1).mul(8).round(), rows(37, seed=2).mul(8).round()  # whole numbers: no rounding
    computer = SimilarityComputer("dot", normalize=False)
    whole = computer.compute(images, texts)
    for batch_size in (1, 7, 99):
        assert torch.equal(computer.batch_compute(images, texts, batch_size), whole)


def test_chunks_bound_what_the_metric_sees() -> None:
    seen = []

    def metric(a: Tensor, b: Tensor) -> Tensor:
        seen.append(len(a))
        return a @ b.T

    SimilarityComputer(metric).batch_compute(rows(10), rows(3), batch_size=4)
    assert seen == [4, 4, 2]


@pytest.mark.parametrize("queries", ["images", "texts"])
def test_top_k_equals_a_stable_sort_with_many_ties(queries: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity_computer, "_SCORES_AT_ONCE", 60)  # several chunks
    images, texts = rows(30, 3, seed=1).round(), rows(20, 3, seed=2).round()
    matrix = (images @ texts.T).numpy()
    matrix = matrix if queries == "images" else matrix.T
    computer = SimilarityComputer("dot", normalize=False)
    for k in (1, 5, matrix.shape[1]):
        scores, indices = computer.nearest(images, texts, k, queries)
        for row, values, places in zip(matrix, scores.tolist(), indices.tolist(), strict=True):
            expected = sorted(range(len(row)), key=lambda place: (-row[place], place))[:k]
            assert places == expected
            assert values == [row[place] for place in expected]


def test_equal_candidates_tie_whatever_their_place() -> None:
    # A plain matrix product scores some of the repeats a last bit apart, which ones depending on the shape.
    for n, dim, repeats in itertools.product((1, 3, 64), (64, 512), (3, 7, 201)):
        base, images = rows(5, dim, seed=3), rows(n, dim, seed=4)
        scores, indices = SimilarityComputer().nearest(images, base.repeat(repeats, 1), 3)
        nearest = SimilarityComputer().compute(images, base).argmax(dim=1)
        assert torch.equal(indices, nearest[:, None] + torch.tensor([0, 5, 10]))
        assert (scores == scores[:, :1]).all()


def test_distinct_rows_lose_nothing() -> None:
    embeds = rows(4)[[2, 0, 2, 1, 3, 0]]
    distinct, places = distinct_rows(embeds)
    assert len(distinct) == 4 and places is not None
    assert torch.equal(distinct[places], embeds)
    queries = rows(3, seed=9).double()
    torch.testing.assert_close(spread(queries @ distinct.double().T, places), queries @ embeds.double().T)
    alone, nothing = distinct_rows(rows(5))
    assert nothing is None and torch.equal(alone, rows(5))


def test_stable_top_k_handles_infinities() -> None:
    scores = torch.tensor([[-math.inf, 1.0, -math.inf, math.inf]])
    values, places = stable_top_k(scores, 3)
    assert places.tolist() == [[3, 1, 0]]
    assert values.tolist() == [[math.inf, 1.0, -math.inf]]


def test_dtypes_and_numpy() -> None:
    images, texts = rows(4), rows(3, seed=1)
    computer = SimilarityComputer("dot")
    expected = computer.compute(images, texts)
    assert expected.dtype == torch.float32
    frozen = images.numpy().copy()
    frozen.flags.writeable = False
    assert torch.equal(computer.compute(frozen, texts.numpy()), expected)
    assert torch.equal(computer.compute(images.numpy()[::-1], texts), expected.flip(0))
    assert computer.compute(images.double(), texts).dtype == torch.float64
    half = computer.compute(images.bfloat16(), texts.bfloat16())
    assert half.dtype == torch.float32
    assert torch.equal(half, computer.compute(images.bfloat16().float(), texts.bfloat16().float()))
    assert not computer.compute(images.requires_grad_(), texts).requires_grad


def test_a_metric_that_tells_images_from_texts_keeps_its_sides() -> None:
    weights = torch.nn.Bilinear(4, 4, 1, bias=False)

    def metric(images: Tensor, texts: Tensor) -> Tensor:
        return images @ weights.weight[0] @ texts.T

    images, texts = rows(6, 4), rows(5, 4, seed=1)
    matrix = SimilarityComputer(metric, normalize=False).compute(images, texts)
    assert not matrix.requires_grad
    for queries, scores in (("images", matrix), ("texts", matrix.T)):
        found = SimilarityComputer(metric, normalize=False).nearest(images, texts, 2, queries)
        torch.testing.assert_close(found[0], scores.topk(2, dim=1).values)
        assert torch.equal(found[1], scores.topk(2, dim=1).indices)


def test_the_largest_of_rows_and_columns_of_a_matrix() -> None:
    matrix = rows(6, 9, seed=7)
    for dim in (1, 0):
        found = SimilarityComputer().top_k(matrix, k=4, dim=dim)
        expected = matrix.topk(4, dim=dim)
        assert torch.equal(found[0], expected.values)
        assert torch.equal(found[1], expected.indices)
    assert [side.shape for side in SimilarityComputer().top_k(matrix.numpy())] == [(6, 5), (6, 5)]
    ties = torch.ones(2, 8)
    assert SimilarityComputer().top_k(ties, 3)[1].tolist() == [[0, 1, 2]] * 2
    with pytest.raises(ConfigurationError, match="dim must be 1"):
        SimilarityComputer().top_k(matrix, 2, dim=2)
    with pytest.raises(ShapeError, match="2D similarity matrix"):
        SimilarityComputer().top_k(matrix[0], 2)


def test_no_queries_is_an_empty_answer() -> None:
    scores, indices = SimilarityComputer().nearest(torch.empty(0, 4), rows(3, 4), 2)
    assert scores.shape == indices.shape == (0, 2)


@pytest.mark.parametrize("metric", ["cosin", torch.nn.Identity, 3])
def test_an_unusable_metric_is_refused(metric: object) -> None:
    with pytest.raises(ConfigurationError, match="Invalid metric"):
        SimilarityComputer(metric)


@pytest.mark.parametrize("k", [0, -1, 4, 2.0, True])
def test_top_k_must_be_in_range(k: object) -> None:
    with pytest.raises(ValueError, match=r"top_k must be in range 1…3"):
        SimilarityComputer().nearest(rows(2), rows(3), k)
    with pytest.raises(ValueError, match=r"top_k must be in range 1…3"):
        SimilarityComputer().top_k(rows(2, 3), k)


def test_what_does_not_fit_is_refused() -> None:
    computer = SimilarityComputer()
    for call in (computer.compute, computer.batch_compute, lambda a, b: computer.nearest(a, b, 1)):
        with pytest.raises(ShapeError, match="Expected 2D embeddings"):
            call(rows(2)[0], rows(3))
        with pytest.raises(ShapeError, match="Embedding dimension mismatch"):
            call(rows(2, 4), rows(3, 5))
    with pytest.raises(ConfigurationError, match="Batch size must be positive"):
        computer.batch_compute(rows(2), rows(2), batch_size=0)
    with pytest.raises(ConfigurationError, match="queries must be"):
        computer.nearest(rows(2), rows(2), 1, "text")
    with pytest.raises(ShapeError, match="one row per image"):
        SimilarityComputer(lambda a, b: (a @ b.T).T).compute(rows(2), rows(3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_cannot_be_ranked_is_refused(bad: float) -> None:
    texts = rows(3)
    texts[1, 2] = bad
    with pytest.raises(ShapeError, match="NaN"):
        SimilarityComputer().nearest(rows(2), texts, 1)
