"""The order of rows in training, and batches of hard negatives."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_cases import hard_negative_sampler, keys, random_neighbours
from domainclip.data.batches import (
    EpochBatchSampler,
)
from domainclip.errors import ConfigurationError, ShapeError


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list:
        torch.rand(seed + 3)  # whatever else drew random numbers
        sampler = EpochBatchSampler(50, 8, seed, shuffle=True, drop_last=True)
        sampler.set_position(epoch)
        return keys(sampler)

    assert order(1, 4) == order(1, 4)
    different = {str([[row for _, row in batch] for batch in order(s, e)]) for s in range(3) for e in range(3)}
    assert len(different) == 9


def test_every_row_once_an_epoch():
    sampler = EpochBatchSampler(50, 8, 0, shuffle=True, drop_last=False)
    rows = [row for batch in sampler for _, row in batch]
    assert sorted(rows) == list(range(50))
    assert rows != list(range(50))
    still = EpochBatchSampler(50, 8, 0, shuffle=False, drop_last=False)
    assert [row for batch in still for _, row in batch] == list(range(50))


def test_position_gives_the_tail_of_the_full_order():
    whole = EpochBatchSampler(50, 8, 3, shuffle=True, drop_last=True)
    whole.set_position(2)
    batches = keys(whole)
    assert all(epoch == 2 for batch in batches for epoch, _ in batch)
    for skip in range(len(batches) + 1):
        sampler = EpochBatchSampler(50, 8, 3, shuffle=True, drop_last=True)
        sampler.set_position(2, skip)
        assert keys(sampler) == batches[skip:]
        assert len(sampler) == len(batches)  # the length is that of an epoch, wherever it starts


@pytest.mark.parametrize(
    ("rows", "size", "drop", "sizes"),
    [(20, 8, True, [8, 8]), (20, 8, False, [8, 8, 4]), (16, 8, True, [8, 8]), (5, 8, True, [5]), (8, 8, True, [8])],
)
def test_last_partial_batch_is_dropped_unless_it_is_the_only_one(rows, size, drop, sizes):
    sampler = EpochBatchSampler(rows, size, 0, shuffle=True, drop_last=drop)
    assert [len(batch) for batch in sampler] == sizes
    assert len(sampler) == len(sizes)


def plain_hard_negative_batches(order: list[int], size: int, fraction: Fraction, neighbours: list[list[int]]):
    """The definition, one row at a time; every row is used."""
    unused = dict.fromkeys(order)
    while unused:
        batch = list(unused)[: max(math.ceil((1 - fraction) * size), 1)]
        anchors = len(batch)
        for row in batch:
            del unused[row]
        for rank in range(len(neighbours[0])):
            for row in batch[:anchors]:
                alike = neighbours[row][rank]
                if len(batch) < size and alike in unused:
                    batch.append(alike)
                    del unused[alike]
        for row in list(unused)[: size - len(batch)]:
            batch.append(row)
            del unused[row]
        yield batch


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 70),
    size=st.integers(1, 20),
    k=st.integers(1, 4),
    percent=st.integers(0, 100),
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 5),
)
def test_batches_of_hard_negatives_are_as_defined(rows, size, k, percent, seed, epoch):
    neighbours = random_neighbours(rows, k, seed)
    make = partial(hard_negative_sampler, rows, size, percent / 100, neighbours, seed, epoch=epoch)
    complete = keys(make(drop_last=False))
    got = [[row for _, row in batch] for batch in complete]
    order = make().order(epoch)
    assert got == list(plain_hard_negative_batches(order, size, Fraction(percent, 100), neighbours.tolist()))
    assert sorted(row for batch in got for row in batch) == list(range(rows))
    assert {number for batch in complete for number, _ in batch} == {epoch}
    assert len(complete) == len(make(drop_last=False))
    assert keys(make()) == complete[: max(rows // size, 1)]  # drop_last leaves out the last and changes no other
    assert keys(make(drop_last=False)) == complete
    for skip in (0, 1, len(complete) // 2, len(complete)):
        assert keys(make(drop_last=False, skip=skip)) == complete[skip:]


def test_wide_windows_are_read_to_their_end():
    """More rows than the sampler looks ahead at once, and nearly all of them taken out of turn at the end."""
    rows, size = 3000, 10
    neighbours = random_neighbours(rows, 12, 5)
    order = EpochBatchSampler(rows, size, 0, shuffle=True, drop_last=False).order(0)
    got = [[row for _, row in batch] for batch in hard_negative_sampler(rows, size, 0.9, neighbours, drop_last=False)]
    assert got == list(plain_hard_negative_batches(order, size, Fraction(9, 10), neighbours.tolist()))


def test_hard_negatives_meet_more_often_than_by_chance():
    rows, size = 600, 20
    # Thirty kinds of twenty rows each; a row's neighbours are of its kind.
    kind = torch.randperm(rows, generator=torch.Generator().manual_seed(1)) % 30
    neighbours = torch.stack([(kind == kind[row]).nonzero().flatten().roll(-row)[:8] for row in range(rows)])

    def meetings(fraction: float) -> int:
        total = 0
        for batch in hard_negative_sampler(rows, size, fraction, neighbours):
            kinds = kind[[row for _, row in batch]]
            total += int((kinds[:, None] == kinds).sum()) - size
        return total

    # By chance each of 20·19 ordered pairs of a batch is of one kind with probability 19/599: 362 in 30 batches.
    assert 250 < meetings(0) < 480
    assert meetings(0.5) > 2 * meetings(0)
    assert meetings(0.9) > meetings(0.5)


def test_fraction_of_a_batch_is_not_lost_to_binary_fractions():
    neighbours = (torch.arange(5000)[:, None] + torch.arange(1, 5)) % 5000
    for percent in range(1, 100):  # 0.29 × 100 is 28.999… in binary
        first = next(iter(hard_negative_sampler(5000, 100, percent / 100, neighbours)))
        order = EpochBatchSampler(5000, 100, 0, shuffle=True, drop_last=True).order(0)
        assert [row for _, row in first[: 100 - percent]] == order[: 100 - percent]
        assert first[100 - percent][1] != order[100 - percent]


def test_hardest_neighbours_come_first_and_every_anchor_has_a_turn():
    rows, size = 100, 8
    neighbours = torch.stack([(torch.arange(rows) + step) % rows for step in (50, 1, 2)], dim=1)
    first = next(iter(hard_negative_sampler(rows, size, 0.5, neighbours)))
    anchors, alike = [row for _, row in first[:4]], [row for _, row in first[4:]]
    assert anchors == EpochBatchSampler(rows, size, 0, shuffle=True, drop_last=True).order(0)[:4]
    assert not {(row + 50) % rows for row in anchors} & set(anchors)  # else some would have been used
    assert alike == [(row + 50) % rows for row in anchors]


def test_without_neighbours_share_or_shuffling_the_order_is_the_plain_one():
    neighbours = random_neighbours(50, 4, 0)
    plain = EpochBatchSampler(50, 8, 7, shuffle=True, drop_last=False)
    # Written out, so that a change of the order that both would share shows.
    order = torch.randperm(50, generator=torch.Generator().manual_seed(7 * 1_000_003)).tolist()
    expected = [[(0, row) for row in order[start : start + 8]] for start in range(0, 50, 8)]
    assert keys(plain) == expected
    sampler = hard_negative_sampler(50, 8, 0.5, None, seed=7, drop_last=False)
    assert keys(sampler) == expected
    sampler.set_neighbours(neighbours)
    assert keys(sampler) != expected
    sampler.set_neighbours(None)
    assert keys(sampler) == expected
    for fraction in (0.0, 0.1):  # a tenth of 8 is no whole row
        assert keys(hard_negative_sampler(50, 8, fraction, neighbours, seed=7, drop_last=False)) == expected
    still = EpochBatchSampler(50, 8, 7, shuffle=False, drop_last=False, hard_negative_batch_fraction=0.5)
    still.set_neighbours(neighbours)
    assert [row for batch in still for _, row in batch] == list(range(50))


def test_new_neighbours_do_not_reach_an_epoch_under_way():
    first, second = random_neighbours(50, 4, 0), random_neighbours(50, 4, 1)
    sampler = hard_negative_sampler(50, 8, 0.5, first)
    expected, running = keys(sampler), iter(sampler)
    got = [next(running)]
    sampler.set_neighbours(second)
    sampler.set_position(3)
    assert [*got, *running] == expected
    assert keys(sampler) == keys(hard_negative_sampler(50, 8, 0.5, second, epoch=3)) != expected
    second.fill_(-1)  # the caller's own tensor
    assert keys(sampler) == keys(hard_negative_sampler(50, 8, 0.5, random_neighbours(50, 4, 1), epoch=3))


def test_neighbours_and_fractions_that_do_not_fit():
    for fraction in (-0.1, 1.1):
        with pytest.raises(ConfigurationError, match="hard_negative_batch_fraction must be in 0…1"):
            EpochBatchSampler(50, 8, 0, shuffle=True, drop_last=True, hard_negative_batch_fraction=fraction)
    sampler = EpochBatchSampler(50, 8, 0, shuffle=True, drop_last=True, hard_negative_batch_fraction=0.5)
    for wrong, message in (
        (torch.zeros(49, 2, dtype=torch.long), r"Expected neighbours of shape \[50, k\].*\(49, 2\)"),
        (torch.zeros(50, dtype=torch.long), "Expected neighbours of shape"),
        (torch.zeros(50, 2), "row numbers, got torch.float32"),
        (torch.full((50, 2), 50), "must be in -1…49, got 50…50"),
        (torch.full((50, 2), -2), "must be in -1…49"),
    ):
        with pytest.raises(ShapeError, match=message):
            sampler.set_neighbours(wrong)
    sampler.set_neighbours(torch.zeros(50, 0, dtype=torch.long))
    assert sorted(len(batch) for batch in sampler) == [8] * 6
