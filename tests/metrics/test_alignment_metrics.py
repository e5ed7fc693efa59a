"""Ranks and retrieval metrics against plain loops, torchmetrics, and cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_reciprocal_rank

from domainclip.errors import ShapeError
from domainclip.metrics.retrieval import AlignmentMetrics, chunked_ranks, ranks_of_best_hit, retrieval_ranks


def rank_by_loop(scores: list[float], relevant: list[bool]) -> int:
    """Sort with every miss before a hit of the same score, and walk down to the first hit."""
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], relevant[place]))
    for rank, place in enumerate(order, start=1):
        if relevant[place]:
            # Hits above are impossible here: this is the first.
            return rank
    raise AssertionError("no hit")


def unit(n: int, dim: int, seed: int) -> torch.Tensor:
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ranks_equal_a_sorting_loop_with_many_ties(data: st.DataObject) -> None:
    n, c = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
    scores = [[data.draw(st.integers(0, 3)) for _ in range(c)] for _ in range(n)]
    relevant = [[data.draw(st.booleans()) for _ in range(c)] for _ in range(n)]
    for row in relevant:
        row[data.draw(st.integers(0, c - 1))] = True
    found = ranks_of_best_hit(torch.tensor(scores, dtype=torch.float32), torch.tensor(relevant))
    expected = [rank_by_loop(row, hits) for row, hits in zip(scores, relevant, strict=True)]
    assert found.tolist() == expected


def test_worked_example() -> None:
    similarity = np.array([[0.9, 0.1, 0.3], [0.8, 0.2, 0.7], [0.1, 0.4, 0.6]])
    found = AlignmentMetrics.compute_all(similarity)
    # Image 0 ranks its text first, image 1 third, image 2 first; text 1 ranks its image second and
    # text 2 its own second.
    assert found["i2t_R@1"] == pytest.approx(2 / 3)
    assert found["i2t_R@5"] == 1.0
    assert found["i2t_MRR"] == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert found["i2t_median_rank"] == 1.0
    assert found["t2i_R@1"] == pytest.approx(1 / 3)
    assert found["t2i_MRR"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found["t2i_median_rank"] == 2.0
    assert found["alignment_score"] == pytest.approx((0.9 + 0.2 + 0.6) / 3)
    assert found["alignment_margin"] == pytest.approx((0.9 + 0.2 + 0.6) / 3 - (0.1 + 0.3 + 0.8 + 0.7 + 0.1 + 0.4) / 6)
    assert (found["n_images"], found["n_texts"]) == (3, 3)


def test_equals_torchmetrics_with_several_hits_per_query() -> None:
    generator = torch.Generator().manual_seed(3)
    # Positive, because torchmetrics' reciprocal rank takes a candidate scored 0 or less as not retrieved.
    similarity = torch.rand(40, 25, generator=generator)
    targets = torch.rand(40, 25, generator=generator) < 0.15
    targets[torch.arange(40), torch.arange(40) % 25] = True
    found = AlignmentMetrics.compute_all(similarity, targets=targets)
    for name, scores, hits in (("i2t", similarity, targets), ("t2i", similarity.T, targets.T)):
        rows = list(zip(scores, hits, strict=True))
        for k in (1, 5, 10):
            expected = torch.stack([retrieval_hit_rate(s, h, top_k=k) for s, h in rows]).mean()
            assert found[f"{name}_R@{k}"] == pytest.approx(expected.item(), abs=1e-6)
        expected = torch.stack([retrieval_reciprocal_rank(s, h) for s, h in rows]).mean()
        assert found[f"{name}_MRR"] == pytest.approx(expected.item(), abs=1e-6)


def test_a_collapsed_model_ranks_last() -> None:
    found = AlignmentMetrics.compute_all(torch.full((20, 20), 0.7))
    assert found["i2t_R@1"] == found["t2i_R@10"] == 0.0
    assert found["i2t_median_rank"] == found["t2i_median_rank"] == 20.0
    assert found["alignment_score"] == pytest.approx(0.7)
    assert found["alignment_margin"] == pytest.approx(0.0, abs=1e-6)


def test_equal_groups_are_hits_whatever_their_type() -> None:
    similarity = torch.tensor([[0.2, 0.9], [0.1, 0.8], [0.7, 0.3]])
    found = AlignmentMetrics.compute_all(similarity, image_groups=["cat", "dog", "cat"], text_groups=["cat", "dog"])
    targets = torch.tensor([[True, False], [False, True], [True, False]])
    assert found == AlignmentMetrics.compute_all(similarity, targets=targets)
    as_numbers = AlignmentMetrics.compute_all(
        similarity, image_groups=torch.tensor([4, 9, 4]), text_groups=np.array([4, 9])
    )
    assert found == as_numbers
    assert (found["n_images"], found["n_texts"]) == (3, 2)
    assert found["i2t_R@1"] == pytest.approx(2 / 3)


def test_other_hits_do_not_count_against_a_query() -> None:
    found = AlignmentMetrics.recall_at_k(torch.eye(2).repeat(2, 1), 1, image_groups=[0, 1, 0, 1], text_groups=[0, 1])
    assert found == {"i2t_R@1": 1.0, "t2i_R@1": 1.0}


def test_single_methods_agree_with_compute_all() -> None:
    similarity = unit(12, 4, 0) @ unit(12, 4, 1).T
    everything = AlignmentMetrics().compute_all(similarity)
    parts = (
        AlignmentMetrics().recall_at_k(similarity)
        | AlignmentMetrics().mean_reciprocal_rank(similarity)
        | AlignmentMetrics().median_rank(similarity)
    )
    parts["alignment_score"] = AlignmentMetrics().compute_alignment_score(similarity)
    assert parts["alignment_score"] == pytest.approx(similarity.diag().mean().item())
    assert everything.pop("alignment_margin") < 1
    assert everything == parts | {"n_images": 12, "n_texts": 12}
    assert set(AlignmentMetrics.recall_at_k(similarity, k=3)) == {"i2t_R@3", "t2i_R@3"}
    assert {"i2t_R@2", "t2i_R@7"} <= AlignmentMetrics.compute_all(similarity, k_values=[2, 7]).keys()


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_ranks_from_embeddings_do_not_depend_on_the_chunk(chunk: int) -> None:
    images, texts = unit(50, 8, 5), unit(30, 8, 6)
    image_groups, text_groups = [row % 11 for row in range(50)], [row % 11 for row in range(30)]
    similarity = (images.double() @ texts.double().T).numpy()
    i2t, t2i = retrieval_ranks(images, texts, image_groups, text_groups, chunk=chunk)
    hits = np.array(image_groups)[:, None] == np.array(text_groups)[None]
    assert i2t.tolist() == [rank_by_loop(s, h) for s, h in zip(similarity.tolist(), hits.tolist(), strict=True)]
    assert t2i.tolist() == [rank_by_loop(s, h) for s, h in zip(similarity.T.tolist(), hits.T.tolist(), strict=True)]


def test_similarities_are_never_held_whole() -> None:
    seen = []

    def hits(start: int, stop: int) -> torch.Tensor:
        seen.append(stop - start)
        return torch.ones(stop - start, 3, dtype=torch.bool)

    assert chunked_ranks(unit(10, 4, 0), unit(3, 4, 1), hits, chunk=4).tolist() == [1] * 10
    assert seen == [4, 4, 2]


@pytest.mark.parametrize("chunk", [1, 7, 16, 1024])
def test_repeated_captions_tie_exactly(chunk: int) -> None:
    # A plain product scores equal rows a last bit apart, depending on their column and on the height of the chunk.
    images, base = unit(257, 64, 0), unit(86, 64, 1)
    which = torch.arange(257) % 86
    own = torch.eye(257, dtype=torch.bool)
    found = chunked_ranks(images, base[which], lambda a, b: own[a:b], chunk)
    similarity = (images.double() @ base.double().T)[:, which]
    expected = [rank_by_loop(s, h) for s, h in zip(similarity.tolist(), own.tolist(), strict=True)]
    assert found.tolist() == expected
    assert found.min() >= 2  # an equal caption of another image always stands before an image's own


def test_repeated_captions_count_against_a_model_unless_grouped() -> None:
    captions = ["a cat", "a dog", "a cat", "a cat"]
    base = {"a cat": [1.0, 0.0], "a dog": [0.0, 1.0]}
    texts = torch.tensor([base[caption] for caption in captions])
    similarity = texts @ texts.T  # a perfect model
    alone = AlignmentMetrics.compute_all(similarity)
    assert alone["i2t_R@1"] == alone["t2i_R@1"] == 0.25
    assert alone["i2t_median_rank"] == 3.0
    grouped = AlignmentMetrics.compute_all(similarity, image_groups=captions, text_groups=captions)
    assert grouped["i2t_R@1"] == grouped["t2i_R@1"] == grouped["i2t_MRR"] == 1.0


def test_several_captions_per_image_equal_torchmetrics() -> None:
    # As in Flickr30k: five captions each, so 60 images against 300 texts.
    owner = torch.arange(300) // 5
    similarity = torch.rand(60, 300, generator=torch.Generator().manual_seed(8))
    targets = owner[None] == torch.arange(60)[:, None]
    similarity[targets] += 0.3
    found = AlignmentMetrics.compute_all(similarity, targets=targets)
    assert found == AlignmentMetrics.compute_all(similarity, image_groups=range(60), text_groups=owner)
    for name, scores, hits in (("i2t", similarity, targets), ("t2i", similarity.T, targets.T)):
        expected = [retrieval_hit_rate(s, h, top_k=5).item() for s, h in zip(scores, hits, strict=True)]
        assert found[f"{name}_R@5"] == pytest.approx(np.mean(expected))


def test_a_matrix_of_several_chunks_and_the_same_answer_each_time() -> None:
    similarity = torch.randn(2100, 12, generator=torch.Generator().manual_seed(4)).mul(4).round()  # many ties
    groups = {"image_groups": [row % 12 for row in range(2100)], "text_groups": list(range(12))}
    found = AlignmentMetrics.compute_all(similarity, **groups)
    hits = torch.tensor(groups["image_groups"])[:, None] == torch.arange(12)
    ranks = [rank_by_loop(s, h) for s, h in zip(similarity.tolist(), hits.tolist(), strict=True)]
    assert found["i2t_R@1"] == pytest.approx(np.mean(np.array(ranks) == 1))
    assert found["i2t_MRR"] == pytest.approx(np.mean(1 / np.array(ranks)))
    assert found["i2t_median_rank"] == np.median(ranks)
    assert AlignmentMetrics.compute_all(similarity, **groups) == found


def test_half_precision_keeps_its_ties() -> None:
    similarity = torch.tensor([[0.5, 0.5001], [0.1, 0.9]], dtype=torch.bfloat16)
    assert similarity[0, 0] == similarity[0, 1]
    assert AlignmentMetrics.recall_at_k(similarity, 1)["i2t_R@1"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"similarity": torch.zeros(2, 3)}, "Expected a square similarity matrix.*targets"),
        ({"similarity": torch.zeros(4)}, "Expected a 2D similarity matrix"),
        ({"similarity": torch.zeros(0, 0)}, "Expected a 2D similarity matrix"),
        ({"similarity": torch.tensor([[math.nan]])}, "NaN"),
        (
            {"similarity": torch.zeros(2, 3), "targets": torch.zeros(3, 2, dtype=torch.bool)},
            r"shape \(2, 3\)",
        ),
        ({"similarity": torch.zeros(2, 2), "targets": torch.eye(2)}, "boolean"),
        ({"similarity": torch.zeros(2, 2), "targets": torch.tensor([[True, True], [False, False]])}, "row 1"),
        ({"similarity": torch.zeros(2, 2), "image_groups": [0, 1]}, "give both"),
        ({"similarity": torch.zeros(2, 2), "image_groups": [0], "text_groups": [0, 1]}, "1 ids for 2 rows"),
        ({"similarity": torch.zeros(2, 2), "image_groups": [0, None], "text_groups": [0, 1]}, "row 1"),
        ({"similarity": torch.zeros(2, 2), "k_values": [0]}, "whole number, got 0"),
        (
            {
                "similarity": torch.eye(2),
                "targets": torch.eye(2).bool(),
                "image_groups": [0, 1],
                "text_groups": [0, 1],
            },
            "not both",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(arguments: dict, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        AlignmentMetrics.compute_all(**arguments)


def test_embeddings_of_different_width_are_refused() -> None:
    with pytest.raises(ShapeError, match="Embedding dimension mismatch: 4 against 5"):
        retrieval_ranks(unit(3, 4, 0), unit(3, 5, 0))
    with pytest.raises(ShapeError, match="Expected a square"):
        retrieval_ranks(unit(3, 4, 0), unit(2, 4, 0))
