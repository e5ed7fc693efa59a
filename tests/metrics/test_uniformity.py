"""Uniformity and effective rank beside plain loops and known values."""

from __future__ import annotations

import math

import pytest
import torch

from domainclip.errors import ShapeError
from domainclip.metrics.uniformity import effective_rank, uniformity


def plain_uniformity(embeds: torch.Tensor, t: float = 2.0) -> float:
    rows = [row / row.norm() for row in embeds.double()]
    pairs = [(a, b) for index, a in enumerate(rows) for b in rows[index + 1 :]]
    return math.log(sum(math.exp(-t * float((a - b).square().sum())) for a, b in pairs) / len(pairs))


def plain_effective_rank(embeds: torch.Tensor) -> float:
    unit = embeds.double() / embeds.double().norm(dim=1, keepdim=True)
    singular = torch.linalg.svdvals(unit - unit.mean(0)).tolist()
    fractions = [value / sum(singular) for value in singular if value > 1e-12]
    return math.exp(-sum(p * math.log(p) for p in fractions))


@pytest.mark.parametrize("shape", [(5, 3), (12, 40), (40, 12), (2, 2)])
def test_both_equal_a_plain_loop(shape: tuple[int, int]) -> None:
    embeds = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + 0.5
    assert uniformity(embeds) == pytest.approx(plain_uniformity(embeds), rel=1e-4)
    assert effective_rank(embeds) == pytest.approx(plain_effective_rank(embeds), rel=1e-4)
    assert 1 - 1e-6 <= effective_rank(embeds) <= min(shape)


def test_embeddings_that_are_all_the_same_have_no_rank_and_no_spread() -> None:
    same = torch.tensor([[0.3, 0.4, 0.1]]).expand(8, 3)
    assert uniformity(same) == pytest.approx(0, abs=1e-5)
    assert effective_rank(same) == 0
    assert effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])) == pytest.approx(1)


def test_opposite_corners_of_a_cross_take_up_all_directions() -> None:
    corners = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(corners) == pytest.approx(4)


@pytest.mark.parametrize("shape", [(1, 3), (4,), (0, 3)])
def test_one_embedding_has_neither(shape: tuple[int, ...]) -> None:
    for measure in (uniformity, effective_rank):
        with pytest.raises(ShapeError, match="Expected 2D embeddings"):
            measure(torch.zeros(shape))
