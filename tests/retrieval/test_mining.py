"""Hard negatives, against plain loops in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domainclip.errors import ShapeError
from domainclip.retrieval.mining import hard_negatives


def plain_hard_negatives(images, texts, groups, k, duplicate=0.98, margin=None, candidates=None):
    """The definition, one pair of rows at a time."""

    def cos(a, b) -> float:
        a, b = a.double(), b.double()
        return float(a @ b / (a.norm() * b.norm()))

    n = len(images)
    usable = [i for i in range(n) if images[i].any() and texts[i].any()]
    result = [[-1] * k for _ in range(n)]
    for i in usable:
        found = []
        for j in usable:
            if groups[i] == groups[j] or (candidates is not None and j not in candidates):
                continue
            if cos(images[i], images[j]) >= duplicate or cos(texts[i], texts[j]) >= duplicate:
                continue
            hardness = max(cos(images[i], texts[j]), cos(images[j], texts[i]))
            if margin is not None and hardness > cos(images[i], texts[i]) + margin:
                continue
            found.append((-round(hardness, 9), j))
        for index, (_, j) in enumerate(sorted(found)[:k]):
            result[i][index] = j
    return result


def pairs(n: int, dim: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, dim, generator=generator)
    texts = images + 0.7 * torch.randn(n, dim, generator=generator)
    return images, texts, torch.randint(0, max(n // 3, 1), (n,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("margin", [None, 0.0, -0.1])
@pytest.mark.parametrize("duplicate", [0.98, 0.6, 2.0])
def test_equals_plain_loops(chunk, margin, duplicate):
    images, texts, groups = pairs(40)
    found = hard_negatives(
        images, texts, groups, 5, duplicate_similarity=duplicate, false_negative_margin=margin, chunk=chunk
    )
    assert found.dtype == torch.int64
    assert found.tolist() == plain_hard_negatives(images, texts, groups, 5, duplicate, margin)


def test_rejections_bite():
    """Without this the comparison above might hold because nothing is ever rejected."""
    images, texts, groups = pairs(40)
    alone = torch.arange(40)
    plain = hard_negatives(images, texts, alone, 5, duplicate_similarity=2.0)
    for other in (
        hard_negatives(images, texts, groups, 5, duplicate_similarity=2.0),
        hard_negatives(images, texts, alone, 5, duplicate_similarity=0.6),
        hard_negatives(images, texts, alone, 5, duplicate_similarity=2.0, false_negative_margin=-0.1),
    ):
        assert not torch.equal(plain, other)


# Cosines of these are 0, ±½ or ±1, exactly so in float32 too: nearly every hardness occurs several times.
EXACT = [
    (0, 0, 0, 0),
    (1, 0, 0, 0),
    (-3, 0, 0, 0),
    (0, 2, 0, 0),
    (0, 0, 1, 0),
    (1, 1, 1, 1),
    (1, -1, 1, -1),
    (-1, -1, 1, 1),
    (2, 2, 2, -2),
]


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(EXACT), st.sampled_from(EXACT), st.integers(-2, 4)), min_size=1, max_size=14
    ),
    k=st.integers(1, 6),
    chunk=st.integers(1, 15),
    duplicate=st.sampled_from([0.98, 0.5, 1.0, 2.0]),
    margin=st.sampled_from([None, 0.0, 0.5, -0.5]),
)
def test_equals_plain_loops_with_ties_zeros_and_equal_rows(rows, k, chunk, duplicate, margin):
    images, texts = (torch.tensor([row[side] for row in rows], dtype=torch.float32) for side in (0, 1))
    groups = torch.tensor([row[2] for row in rows])
    found = hard_negatives(
        images, texts, groups, k, duplicate_similarity=duplicate, false_negative_margin=margin, chunk=chunk
    )
    assert found.tolist() == plain_hard_negatives(images, texts, groups, k, duplicate, margin)


def test_a_candidate_as_near_as_the_positive_is_within_a_margin_of_nothing():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(200, 257, generator=generator), torch.randn(100, 257, generator=generator).repeat(2, 1)
    images += texts
    own = torch.nn.functional.cosine_similarity(images, texts, dim=1)
    found = hard_negatives(images, texts, torch.arange(200), 1, duplicate_similarity=2.0, false_negative_margin=0.0)
    for row in range(100):  # two rows share a caption; the one nearer to it keeps the other, which loses it
        nearer, other = sorted((row, row + 100), key=lambda i: -own[i])
        assert found[nearer] == other
        assert found[other] != nearer


def test_equal_captions_tie_to_the_last_bit():
    """Wide embeddings, where a matrix product adds up some columns in another order than others."""
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(95, 257, generator=generator), torch.randn(95, 257, generator=generator)
    repeated, kind = torch.randn(257, generator=generator), torch.arange(95) % 3
    images[kind == 0] = repeated + 0.5 * images[kind == 0]  # what the caption of all the others says
    texts[kind != 0] = repeated
    groups = torch.where(kind == 0, torch.arange(95), 1000)
    expected = (kind != 0).nonzero().flatten()[:12].tolist()  # equally hard, so the first of them
    for chunk in (1, 13, 95):
        found = hard_negatives(images, texts, groups, 12, chunk=chunk)
        assert all(row == expected for row in found[kind == 0].tolist())


def test_by_hand():
    # Row 1 is row 0's image under another caption, row 2 says the same of another image, row 3 is a true
    # hard negative, row 4 has row 0's group, row 5 could not be read, row 6 is far away.
    images = torch.tensor(
        [[1, 0, 0], [1, 0.01, 0], [0, 1, 0.2], [1, 0.9, 0], [1, 0.5, 0], [0, 0, 0], [-1, 0.0, 0.1]], dtype=torch.float32
    )
    texts = torch.tensor(
        [[1, 0, 0.3], [0, 1, 0], [1, 0, 0.31], [1, 1, 0], [1, 0.4, 0], [1, 0.7, 0], [-1, 0, 1]], dtype=torch.float32
    )
    groups = torch.tensor([0, 1, 2, 3, 0, 5, 6])
    assert hard_negatives(images, texts, groups, 3)[0].tolist() == [3, 6, -1]
    everything = hard_negatives(images, texts, torch.arange(7), 7, duplicate_similarity=2.0)
    assert sorted(everything[0].tolist()) == [-1, -1, 1, 2, 3, 4, 6]
    assert everything[5].tolist() == [-1] * 7
    assert not (everything == 5).any()


def test_exact_copies_are_duplicates_at_a_similarity_of_one():
    images, texts, _ = pairs(30, dim=64)
    images[15:] = images[:15] * 3.7
    found = hard_negatives(images, texts, torch.arange(30), 29, duplicate_similarity=1.0)
    for row in range(15):
        assert row + 15 not in found[row].tolist()
        assert sorted(found[row].tolist()) == sorted([-1, *(set(range(30)) - {row, row + 15})])


def test_lengths_of_embeddings_do_not_count():
    images, texts, groups = pairs(25)
    stretch = torch.linspace(0.1, 30, 25)[:, None]
    assert torch.equal(hard_negatives(images * stretch, texts / stretch, groups), hard_negatives(images, texts, groups))


def test_pool_is_drawn_by_seed():
    images, texts, groups = pairs(60)
    images[7] = 0
    found = hard_negatives(images, texts, groups, 6, pool=20, seed=3)
    candidates = set(found.flatten().tolist()) - {-1}
    assert len(candidates) <= 20
    assert 7 not in candidates
    whole = hard_negatives(images, texts, torch.arange(60), 60, duplicate_similarity=2.0, pool=20, seed=3)
    drawn = set(whole.flatten().tolist()) - {-1}
    assert len(drawn) == 20 and candidates <= drawn
    assert found.tolist() == plain_hard_negatives(images, texts, groups, 6, candidates=drawn)
    assert torch.equal(found, hard_negatives(images, texts, groups, 6, pool=20, seed=3, chunk=11))
    assert not torch.equal(found, hard_negatives(images, texts, groups, 6, pool=20, seed=4))
    assert torch.equal(
        hard_negatives(images, texts, groups, 6, pool=59), hard_negatives(images, texts, groups, 6)
    )  # 59 rows can be read


def test_ties_within_a_pool_go_by_row_number():
    axes = torch.eye(32)  # every caption is at a right angle to every other image
    found = hard_negatives(axes, axes, torch.arange(32), 4, pool=10)
    drawn = sorted(set(hard_negatives(axes, axes, torch.arange(32), 10, pool=10).flatten().tolist()) - {-1})
    assert len(drawn) == 10
    assert found.tolist() == [[j for j in drawn if j != i][:4] for i in range(32)]


def test_random_state_is_left_alone_and_no_graph_is_kept():
    images, texts, groups = pairs(30)
    state = torch.get_rng_state()
    found = hard_negatives(images.requires_grad_(), texts.half(), groups, pool=10)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.shape == (30, 8) and not found.requires_grad


def test_fewer_rows_than_asked_for():
    images, texts, _ = pairs(3)
    found = hard_negatives(images, texts, torch.arange(3), 8, duplicate_similarity=2.0)
    assert [sorted(row) for row in found.tolist()] == [[-1] * 6 + [1, 2], [-1] * 6 + [0, 2], [-1] * 6 + [0, 1]]
    assert (found[:, 2:] == -1).all()
    assert hard_negatives(images[:0], texts[:0], torch.arange(0)).shape == (0, 8)
    assert (hard_negatives(images * 0, texts, torch.arange(3)) == -1).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_values_that_are_not_finite(value, side):
    sides = list(pairs(5))
    sides[side][3, 2] = value
    with pytest.raises(ShapeError, match=rf"{('image', 'text')[side]}_embeds contains NaN.*1 of 5 rows.*row 3"):
        hard_negatives(*sides)


def test_shapes_that_do_not_fit():
    images, texts, groups = pairs(5)
    with pytest.raises(ShapeError, match="Expected 2D embeddings"):
        hard_negatives(images[0], texts, groups)
    with pytest.raises(ShapeError, match="Embedding dimension mismatch"):
        hard_negatives(images[:, :4], texts, groups)
    for wrong in ((images[:4], texts, groups), (images, texts, groups[:4]), (images, texts, groups[:, None])):
        with pytest.raises(ShapeError, match="Batch size mismatch"):
            hard_negatives(*wrong)
    for name in ("k", "pool", "chunk"):
        with pytest.raises(ShapeError, match=f"{name} must be at least 1, got 0"):
            hard_negatives(images, texts, groups, **{name: 0})
