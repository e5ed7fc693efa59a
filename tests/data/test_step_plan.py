"""What each step of a training is: batches that grow, resolutions that change, and that both can be taken up
anywhere."""

from __future__ import annotations

import math
import pickle
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from batch_cases import plan_of
from domainclip.config.step_schedules import BatchSchedule
from domainclip.data.batches import EpochBatchSampler
from domainclip.data.step_plan import StepPlan, ViewKey

# --- batches ---


def simulated(rows: int, phases: list[tuple[int, int]], epochs: int, drop_last: bool) -> list[list[int]]:
    """One batch after the other: the sizes of each epoch's."""
    step, result = 0, []
    for _ in range(epochs):
        left, sizes = rows, []
        while True:
            wanted = [size for first, size in phases if first <= step][-1]
            if left < wanted:
                break
            sizes.append(wanted)
            left -= wanted
            step += 1
        if left and (not sizes or not drop_last):
            sizes.append(left)
            step += 1
        result.append(sizes)
    return result


@st.composite
def schedules(draw) -> list[tuple[int, int]]:
    steps = [0, *sorted(draw(st.sets(st.integers(1, 60), max_size=4)))]
    return [(step, draw(st.integers(2, 30))) for step in steps]


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 120),
    phases=schedules(),
    epochs=st.integers(1, 12),
    drop_last=st.booleans(),
    max_steps=st.none() | st.integers(1, 80),
)
def test_batches_are_those_of_a_step_by_step_simulation(rows, phases, epochs, drop_last, max_steps):
    expected = simulated(rows, phases, epochs, drop_last)
    batches = BatchSchedule(rows, tuple(phases), drop_last)
    plan = StepPlan(batches, batches.epoch_start(epochs), 224)
    assert [plan.sizes(epoch) for epoch in range(epochs)] == expected
    assert [plan.batches(epoch) for epoch in range(epochs)] == [len(sizes) for sizes in expected]
    assert [plan.epoch_start(epoch) for epoch in range(epochs + 1)] == [
        sum(map(len, expected[:epoch])) for epoch in range(epochs + 1)
    ]
    places = [(epoch, batch) for epoch, sizes in enumerate(expected) for batch in range(len(sizes))]
    assert [batches.position(step) for step in range(len(places))] == places
    assert [plan.size(step) for step in range(len(places))] == [size for sizes in expected for size in sizes]
    assert plan.epochs(len(places)) == epochs
    largest = max(size for _, size in phases)
    for step in range(len(places)):
        wanted = [size for first, size in phases if first <= step][-1]
        assert plan.rate(step) == pytest.approx(math.sqrt(wanted / largest))
    if drop_last:
        values = {"batch_size_schedule": dict(phases), "num_epochs": epochs, "max_steps": max_steps}
        assert plan_of(rows, largest, **values).total_steps == min(len(places), max_steps or len(places))


@pytest.mark.parametrize(("rows", "batch", "batches"), [(100, 8, 12), (96, 8, 12), (5, 8, 1), (8, 8, 1)])
def test_without_keys_the_plan_is_one_size_one_resolution_one_rate(rows, batch, batches):
    plan = plan_of(rows, batch, 160)
    assert plan.total_steps == 3 * batches
    assert plan.resolutions == [160]
    for step in range(plan.total_steps):
        reported = plan.size(step), plan.resolution(step), plan.strength(step), plan.rate(step)
        assert reported == (min(rows, batch), 160, 1.0, 1.0)
    assert plan_of(rows, batch, max_steps=2).total_steps == 2
    assert plan.epochs(batches) == 1


def test_large_trainings_are_planned_at_once():
    started = time.process_time()
    plan = plan_of(
        300_000,
        256,
        num_epochs=30,
        batch_size_schedule={0: 32, 5000: 64, 12_000: 256},
        resolution_schedule={0: 128, 0.5: 192, 0.75: 224},
    )
    for step in range(0, plan.total_steps, 10):
        plan.size(step), plan.resolution(step), plan.rate(step)
    assert time.process_time() - started < 2
    # 5000·32 + 2187·64 rows are one epoch (32 rows are left), then 64s up to step 12,000 …
    assert plan.batches(0) == 5000 + (300_000 - 5000 * 32) // 64
    assert plan.batches(29) == 300_000 // 256


# --- order ---


def rows_of(batches: list) -> list[list[int]]:
    return [[key[1] for key in batch] for batch in batches]


def sampler_of(plan: StepPlan, epoch: int = 0, skip: int = 0, fraction: float = 0.0) -> EpochBatchSampler:
    rows = plan.batch_schedule.rows
    sampler = EpochBatchSampler(
        rows, 8, 5, shuffle=True, drop_last=True, hard_negative_batch_fraction=fraction, plan=plan
    )
    if fraction:
        sampler.set_neighbours(torch.randint(-1, rows, (rows, 3), generator=torch.Generator().manual_seed(0)))
    sampler.set_position(epoch, skip)
    return sampler


def test_without_keys_order_and_keys_are_the_plain_ones():
    for epoch in range(3):
        order = torch.randperm(100, generator=torch.Generator().manual_seed(5 * 1_000_003 + epoch)).tolist()
        expected = [[(epoch, row) for row in order[first : first + 8]] for first in range(0, 96, 8)]
        got = list(sampler_of(plan_of(), epoch))
        assert got == expected
        assert not any(isinstance(key, ViewKey) for batch in got for key in batch)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize(
    "values",
    [
        {"batch_size_schedule": {0: 4, 20: 7, 30: 8}},
        {"resolution_schedule": {0: 96, 0.4: 160, 0.8: 224}, "batch_size_schedule": {0: 4, 30: 8}},
        {"training_resolutions": {96: 1, 160: 2, 224: 1}},
    ],
)
def test_taken_up_anywhere_the_batches_are_the_same(values, fraction):
    plan = plan_of(**values)
    step = 0
    for epoch in range(3):
        whole = list(sampler_of(plan, epoch, fraction=fraction))
        assert len(whole) == plan.batches(epoch) == len(sampler_of(plan, epoch, fraction=fraction))
        assert [len(batch) for batch in whole] == plan.sizes(epoch)
        rows = [row for batch in rows_of(whole) for row in batch]
        assert len(set(rows)) == len(rows)
        for batch in whole:
            resolutions = {key.resolution if isinstance(key, ViewKey) else 224 for key in batch}
            strengths = {key.strength if isinstance(key, ViewKey) else 1.0 for key in batch}
            assert (resolutions, strengths) == ({plan.resolution(step)}, {plan.strength(step)})
            assert {key[0] for key in batch} == {epoch}
            step += 1
        for skip in (0, 1, len(whole) // 2, len(whole)):
            again = pickle.loads(pickle.dumps(list(sampler_of(plan_of(**values), epoch, skip, fraction))))
            assert again == whole[skip:]
    assert step == plan.total_steps


def test_every_batch_has_its_own_fraction_of_hard_negatives():
    plan = plan_of(2000, 40, batch_size_schedule={0: 10, 3: 40})
    sampler = EpochBatchSampler(2000, 40, 0, shuffle=True, drop_last=True, hard_negative_batch_fraction=0.3, plan=plan)
    sampler.set_neighbours((torch.arange(2000)[:, None] + torch.arange(1, 9)) % 2000)
    order, used = sampler.order(0), set()
    for batch in rows_of(list(sampler))[:8]:
        anchors = [row for row in order if row not in used][: round(0.7 * len(batch))]
        assert batch[: len(anchors)] == anchors
        alike = batch[len(anchors) :]
        assert len(alike) == round(0.3 * len(batch))
        assert all(any(0 < (row - anchor) % 2000 < 9 for anchor in anchors) for row in alike)
        used |= set(batch)


# --- resolutions ---


def test_resolutions_begin_at_their_fraction_of_the_steps():
    plan = plan_of(100, 8, resolution_schedule={0: 96, 0.29: 160, 0.75: 224}, max_steps=30)
    assert plan.resolutions == [96, 160, 224]
    assert [plan.resolution(step) for step in range(30)] == [
        224 if step >= math.floor(0.75 * 30) else 160 if step >= math.floor(0.29 * 30) else 96 for step in range(30)
    ]
    assert plan.strength(0) == pytest.approx(96 / 224)
    assert plan.strength(29) == 1.0
    # 0.29 × 100 is 28.999… in binary
    assert plan_of(1000, 10, num_epochs=1, resolution_schedule={0: 96, 0.29: 224}).phases == ((0, 96), (29, 224))
    short = plan_of(resolution_schedule={0: 96, 0.5: 160, 0.9: 224}, max_steps=1)
    assert (short.total_steps, short.resolution(0)) == (1, 224)


def test_resolutions_by_epoch():
    plan = plan_of(100, 8, resolution_schedule={0: 96, 1: 160, 1.5: 224}, resolution_schedule_by="epoch")
    assert plan.phases == ((0, 96), (12, 160), (18, 224))
    growing = plan_of(
        100, 8, resolution_schedule={0: 96, 1: 224}, resolution_schedule_by="epoch", batch_size_schedule={0: 4, 12: 8}
    )
    assert growing.phases == ((0, 96), (growing.epoch_start(1), 224)) != ((0, 96), (12, 224))


def test_rate_rises_again_after_a_change_of_resolution():
    plan = plan_of(8000, 8, num_epochs=1, resolution_schedule={0: 96, 0.5: 160, 0.9: 224})
    assert plan.phases == ((0, 96), (500, 160), (900, 224))
    assert [plan.rate(step) for step in range(500)] == [1.0] * 500
    for first, rise in ((500, 20), (900, 5)):  # 5 % of 400 and of 100 steps
        assert [plan.rate(first + step) for step in range(rise + 1)] == pytest.approx(
            [0.1 + 0.9 * step / rise for step in range(rise + 1)]
        )
        assert plan.rate(first + rise + 1) == 1.0
    both = plan_of(8000, 8, num_epochs=1, resolution_schedule={0: 96, 0.5: 224}, batch_size_schedule={0: 2, 900: 8})
    first = both.phases[1][0]
    assert both.rate(first) == pytest.approx(0.1 * (1 if first >= 900 else 0.5))


def test_drawn_resolutions_follow_their_weights_and_the_step_alone():
    weights = {96: 1.0, 160: 2.0, 224: 5.0}
    plan = plan_of(80_000, 8, training_resolutions=weights)
    assert plan.resolutions == [96, 160, 224]
    steps = range(8000)
    drawn = [plan.resolution(step) for step in steps]
    seen = Counter(drawn)
    assert chisquare([seen[resolution] for resolution in weights], [1000, 2000, 5000]).pvalue > 0.01
    # Neighbouring steps know nothing of each other.
    pairs = Counter(pairwise(drawn))
    expected = {(a, b): weights[a] * weights[b] / 64 * 7999 for a in weights for b in weights}
    scale = sum(pairs.values()) / sum(expected.values())
    assert chisquare([pairs[key] for key in expected], [scale * value for value in expected.values()]).pvalue > 0.01
    again = plan_of(80_000, 8, training_resolutions=weights)
    assert [again.resolution(step) for step in reversed(steps)] == drawn[::-1]
    assert [replace(plan, seed=7).resolution(step) for step in steps] != drawn
    assert {plan.strength(step) for step in range(50)} == {1.0}
    assert {plan.rate(step) for step in range(50)} == {1.0}
