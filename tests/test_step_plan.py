"""What each step of a training is: batches that grow, sides that change, and that both can be taken up anywhere."""

from __future__ import annotations

import math
import pickle
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from domainclip.config import CLIPFinetuningConfig, DataFacts, ModelFacts, parse_overrides, resolve
from domainclip.config.resolution import SideRule
from domainclip.config.resolve_steps import batch_schedule, resolved_steps
from domainclip.config.step_schedules import BatchSchedule
from domainclip.data.batches import EpochBatchSampler, create_training_loader
from domainclip.data.dataset import CLIPDataset
from domainclip.data.image_spec import ImageSpec
from domainclip.data.step_plan import StepPlan, ViewKey
from domainclip.data.transforms import ImageTransform
from domainclip.errors import ConfigurationError
from domainclip.models.tiny import make_tiny_clip

CLIP = ModelFacts(224, 77, False, "transformer", "transformer", 0.01, sides=SideRule(224, 32, 32))
ROWS = DataFacts(1000, 0.0, 0.0, 0, False, 8)


@pytest.fixture(scope="module")
def processor():
    return make_tiny_clip().processor


def plan_of(rows: int = 100, batch: int = 8, side: int = 224, **values) -> StepPlan:
    return StepPlan.from_settings(CLIPFinetuningConfig(**{"num_epochs": 3, **values}), rows, batch, side)


def resolved(model: ModelFacts = CLIP, data: DataFacts = ROWS, **values):
    recipe, decisions = resolve(CLIPFinetuningConfig(**values), model, data)
    return recipe, {decision.key: decision for decision in decisions}


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
def test_without_keys_the_plan_is_one_size_one_side_one_rate(rows, batch, batches):
    plan = plan_of(rows, batch, 160)
    assert plan.total_steps == 3 * batches
    assert plan.sides == [160]
    for step in range(plan.total_steps):
        told = plan.size(step), plan.side(step), plan.strength(step), plan.rate(step)
        assert told == (min(rows, batch), 160, 1.0, 1.0)
    assert plan_of(rows, batch, max_steps=2).total_steps == 2
    assert plan.epochs(batches) == 1


def test_large_trainings_are_planned_at_once():
    started = time.process_time()
    plan = plan_of(300_000, 256, num_epochs=30, batch_size_schedule={0: 32, 5000: 64, 12_000: 256},
                   resolution_schedule={0: 128, 0.5: 192, 0.75: 224})  # fmt: skip
    for step in range(0, plan.total_steps, 10):
        plan.size(step), plan.side(step), plan.rate(step)
    assert time.process_time() - started < 2
    # 5000·32 + 2187·64 rows are one epoch (32 rows are left), then 64s up to step 12,000 …
    assert plan.batches(0) == 5000 + (300_000 - 5000 * 32) // 64
    assert plan.batches(29) == 300_000 // 256


# --- order ---


def rows_of(batches: list) -> list[list[int]]:
    return [[key[1] for key in batch] for batch in batches]


def sampler_of(plan: StepPlan, epoch: int = 0, skip: int = 0, share: float = 0.0) -> EpochBatchSampler:
    rows = plan.batch_schedule.rows
    sampler = EpochBatchSampler(rows, 8, 5, shuffle=True, drop_last=True, look_alike_share=share, plan=plan)
    if share:
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


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize(
    "values",
    [
        {"batch_size_schedule": {0: 4, 20: 7, 30: 8}},
        {"resolution_schedule": {0: 96, 0.4: 160, 0.8: 224}, "batch_size_schedule": {0: 4, 30: 8}},
        {"training_resolutions": {96: 1, 160: 2, 224: 1}},
    ],
)
def test_taken_up_anywhere_the_batches_are_the_same(values, share):
    plan = plan_of(**values)
    step = 0
    for epoch in range(3):
        whole = list(sampler_of(plan, epoch, share=share))
        assert len(whole) == plan.batches(epoch) == len(sampler_of(plan, epoch, share=share))
        assert [len(batch) for batch in whole] == plan.sizes(epoch)
        rows = [row for batch in rows_of(whole) for row in batch]
        assert len(set(rows)) == len(rows)
        for batch in whole:
            sides = {key.side if isinstance(key, ViewKey) else 224 for key in batch}
            strengths = {key.strength if isinstance(key, ViewKey) else 1.0 for key in batch}
            assert (sides, strengths) == ({plan.side(step)}, {plan.strength(step)})
            assert {key[0] for key in batch} == {epoch}
            step += 1
        for skip in (0, 1, len(whole) // 2, len(whole)):
            again = pickle.loads(pickle.dumps(list(sampler_of(plan_of(**values), epoch, skip, share))))
            assert again == whole[skip:]
    assert step == plan.total_steps


def test_every_batch_has_its_own_share_of_look_alikes():
    plan = plan_of(2000, 40, batch_size_schedule={0: 10, 3: 40})
    sampler = EpochBatchSampler(2000, 40, 0, shuffle=True, drop_last=True, look_alike_share=0.3, plan=plan)
    sampler.set_neighbours((torch.arange(2000)[:, None] + torch.arange(1, 9)) % 2000)
    order, used = sampler.order(0), set()
    for batch in rows_of(list(sampler))[:8]:
        anchors = [row for row in order if row not in used][: round(0.7 * len(batch))]
        assert batch[: len(anchors)] == anchors
        alike = batch[len(anchors) :]
        assert len(alike) == round(0.3 * len(batch))
        assert all(any(0 < (row - anchor) % 2000 < 9 for anchor in anchors) for row in alike)
        used |= set(batch)


# --- sides ---


def test_sides_begin_at_their_share_of_the_steps():
    plan = plan_of(100, 8, resolution_schedule={0: 96, 0.29: 160, 0.75: 224}, max_steps=30)
    assert plan.sides == [96, 160, 224]
    assert [plan.side(step) for step in range(30)] == [
        224 if step >= math.floor(0.75 * 30) else 160 if step >= math.floor(0.29 * 30) else 96 for step in range(30)
    ]
    assert plan.strength(0) == pytest.approx(96 / 224)
    assert plan.strength(29) == 1.0
    # 0.29 × 100 is 28.999… in binary
    assert plan_of(1000, 10, num_epochs=1, resolution_schedule={0: 96, 0.29: 224}).phases == ((0, 96), (29, 224))
    short = plan_of(resolution_schedule={0: 96, 0.5: 160, 0.9: 224}, max_steps=1)
    assert (short.total_steps, short.side(0)) == (1, 224)


def test_sides_by_epoch():
    plan = plan_of(100, 8, resolution_schedule={0: 96, 1: 160, 1.5: 224}, resolution_schedule_by="epoch")
    assert plan.phases == ((0, 96), (12, 160), (18, 224))
    growing = plan_of(
        100, 8, resolution_schedule={0: 96, 1: 224}, resolution_schedule_by="epoch", batch_size_schedule={0: 4, 12: 8}
    )
    assert growing.phases == ((0, 96), (growing.epoch_start(1), 224)) != ((0, 96), (12, 224))


def test_rate_rises_again_after_a_change_of_side():
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


def test_drawn_sides_follow_their_weights_and_the_step_alone():
    weights = {96: 1.0, 160: 2.0, 224: 5.0}
    plan = plan_of(80_000, 8, training_resolutions=weights)
    assert plan.sides == [96, 160, 224]
    steps = range(8000)
    drawn = [plan.side(step) for step in steps]
    seen = Counter(drawn)
    assert chisquare([seen[side] for side in weights], [1000, 2000, 5000]).pvalue > 0.01
    # Neighbouring steps know nothing of each other.
    pairs = Counter(pairwise(drawn))
    expected = {(a, b): weights[a] * weights[b] / 64 * 7999 for a in weights for b in weights}
    scale = sum(pairs.values()) / sum(expected.values())
    assert chisquare([pairs[key] for key in expected], [scale * value for value in expected.values()]).pvalue > 0.01
    again = plan_of(80_000, 8, training_resolutions=weights)
    assert [again.side(step) for step in reversed(steps)] == drawn[::-1]
    assert [replace(plan, seed=7).side(step) for step in steps] != drawn
    assert {plan.strength(step) for step in range(50)} == {1.0}
    assert {plan.rate(step) for step in range(50)} == {1.0}


# --- recipes ---


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("resolution_schedule={0:96,0.5:128}", {0.0: 96, 0.5: 128}),
        ("resolution_schedule=0:96,0.5:128", {0.0: 96, 0.5: 128}),
        ("resolution_schedule={0.5: 128, 0: 96}", {0.0: 96, 0.5: 128}),
        ("resolution_schedule=auto", "auto"),
        ("resolution_schedule=null", None),
        # 128:1 and 128:1.5 are minutes and seconds to YAML 1.1
        ("training_resolutions={160:3,128:1}", {128: 1.0, 160: 3.0}),
        ("training_resolutions={128:1.5,160:3}", {128: 1.5, 160: 3.0}),
        ("training_resolutions=[128, 160]", {128: 1.0, 160: 1.0}),
        ("training_resolutions=128,160", {128: 1.0, 160: 1.0}),
        ("batch_size_schedule={0:64,500:256}", {0: 64, 500: 256}),
        ("batch_size_schedule={0:64,500:32}", {0: 64, 500: 32}),
        ("batch_size_schedule={0: 64, 500: 32}", {0: 64, 500: 32}),
    ],
)
def test_schedules_can_be_typed_and_saved(written, value):
    config = CLIPFinetuningConfig(**parse_overrides([written]))
    key = written.partition("=")[0]
    assert getattr(config, key) == value
    saved = yaml.safe_dump(config.to_dict(only_set=True), sort_keys=True)
    assert CLIPFinetuningConfig(**yaml.safe_load(saved)) == config


def test_many_epochs_stay_in_order_when_their_keys_are_sorted_as_texts():
    schedule = {0: 96, 2: 128, 10: 160}
    config = CLIPFinetuningConfig(resolution_schedule=schedule, resolution_schedule_by="epoch")
    again = CLIPFinetuningConfig(**yaml.safe_load(yaml.safe_dump(config.to_dict(), sort_keys=True)))
    assert list(again.resolution_schedule.items()) == [(0.0, 96), (2.0, 128), (10.0, 160)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resolution_schedule": {}}, r"resolution_schedule must look like \{0:96,0\.5:128\}, or auto \(it is \{\}\)"),
        ({"resolution_schedule": 96}, "resolution_schedule must look like"),
        ({"resolution_schedule": "automatic"}, "'automatic' is no number"),
        ({"resolution_schedule": {0: "small"}}, "'small' is no number"),
        ({"resolution_schedule": {0: True}}, "True is no number"),
        ({"resolution_schedule": {0: math.inf}}, "inf is no number"),
        ({"resolution_schedule": {0: 8}}, r"a whole number of pixels, 16 to 4096 \(8\)"),
        ({"resolution_schedule": {0: 96.5}}, r"a whole number of pixels, 16 to 4096 \(96\.5\)"),
        ({"resolution_schedule": {0.5: 96}}, r"must begin at 0 \(it begins at 0\.5\)"),
        ({"resolution_schedule": {-1: 96}}, r"must begin at 0 \(it begins at -1\)"),
        ({"resolution_schedule": {0: 96, "0.0": 128}}, "says twice what holds from 0 on"),
        ({"resolution_schedule": {0: 96, 2: 128}}, r"a share .* is below 1 \(one is 2\).*resolution_schedule_by=epoch"),
        ({"resolution_schedule": "auto", "resolution_schedule_by": "epoch"}, "auto counts in shares"),
        ({"resolution_schedule_by": "epoch"}, "says nothing without resolution_schedule"),
        ({"resolution_schedule_by": "step"}, "Invalid unit of the resolution schedule 'step'"),
        ({"resolution_schedule": {0: 96}, "training_resolutions": [96]}, "exclude each other"),
        ({"training_resolutions": []}, "training_resolutions must look like"),
        ({"training_resolutions": [[96]]}, "is no number"),
        ({"training_resolutions": [96, 96]}, "names 96 twice"),
        ({"training_resolutions": {96: 0}}, r"the weight of 96 must be positive \(it is 0\)"),
        ({"batch_size_schedule": {0: 1}}, r"a whole number of pairs, at least 2 \(one has 1\)"),
        ({"batch_size_schedule": {0: 2.5}}, r"a whole number of pairs, at least 2 \(one has 2\.5\)"),
        ({"batch_size_schedule": {0: 4, 2.5: 8}}, r"steps are whole numbers \(one is 2\.5\)"),
        ({"batch_size_schedule": {5: 8}}, r"batch_size_schedule must begin at 0 \(it begins at 5\)"),
    ],
)
def test_settings_that_cannot_be(values, message):
    with pytest.raises(ConfigurationError, match=message):
        CLIPFinetuningConfig(**values)


@pytest.mark.parametrize(
    ("rule", "full", "expected"),
    [
        (SideRule(224, 32, 32), 224, {0.0: 192, 0.6: 224}),
        (SideRule(224, 16, 16), 224, {0.0: 176, 0.6: 224}),
        (SideRule(160, 32, 64), 160, {0.0: 128, 0.6: 160}),
        (SideRule(96, 32, 64), 96, {0.0: 64, 0.6: 96}),
        (SideRule(32, 32, 32), 32, {0.0: 32}),
        (SideRule(64, 32, 64), 64, {0.0: 64}),
    ],
)
def test_automatic_sides_rise_to_the_whole_one(rule, full, expected):
    facts = replace(CLIP, native_resolution=rule.native, sides=rule)
    recipe, decisions = resolved(facts, resolution_schedule="auto")
    assert recipe.resolution_schedule == expected == decisions["resolution_schedule"].value
    assert recipe.image_resolution == full
    assert "image_resolution" in decisions["resolution_schedule"].reason
    assert all(rule.allows(side) for side in recipe.resolution_schedule.values())
    again, _ = resolve(CLIPFinetuningConfig(**recipe.to_dict()), facts, ROWS)
    assert again.resolution_schedule == expected


def test_where_a_schedule_ends_is_the_side_of_the_model():
    recipe, decisions = resolved(resolution_schedule={0: 96, 0.5: 160})
    assert recipe.image_resolution == 160
    assert decisions["image_resolution"].reason == "where resolution_schedule ends"
    assert resolved(resolution_schedule={0: 96, 0.5: 160}, image_resolution=160)[0].image_resolution == 160
    assert resolved(training_resolutions=[160, 192])[0].image_resolution == 224


def test_batch_size_follows_its_schedule():
    recipe, decisions = resolved(batch_size_schedule={0: 64, 10: 240}, gradient_accumulation_steps=3, num_epochs=10)
    assert recipe.batch_size == 80
    assert "the largest contrastive batch of batch_size_schedule is 240; in 3 steps" in decisions["batch_size"].reason
    assert resolved(batch_size=240, batch_size_schedule={0: 64, 10: 240})[0].batch_size == 240
    # Ten batches of 64, then 240s: 11 in the first epoch, 4 in each of the others.
    steps = 11 + 9 * 4
    assert resolved_steps(resolved(batch_size_schedule={0: 64, 10: 240}, num_epochs=10)[0], 1000) == steps
    assert batch_schedule(recipe, 1000).batches(0) == 11
    assert decisions["warmup_steps"].value == math.ceil(steps / 10)
    assert resolved_steps(resolved(batch_size=100, num_epochs=10)[0], 1000) == 100
    assert resolved_steps(resolved(batch_size=100, max_steps=7)[0], 1000) == 7


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        ({"sides": None}, {"resolution_schedule": "auto"}, "resolution_schedule .* takes 224 pixels only"),
        ({"sides": None}, {"training_resolutions": [224]}, "training_resolutions .* takes 224 pixels only"),
        ({}, {"resolution_schedule": {0: 100, 0.5: 224}}, "resolution_schedule: 100 does not fit.*96 or 128"),
        ({}, {"training_resolutions": [100, 224]}, "training_resolutions: 100 does not fit.*96 or 128"),
        ({}, {"resolution_schedule": {0: 96}, "image_resolution": 224}, "ends at 96 pixels and image_resolution=224"),
        (
            {},
            {"resolution_schedule": {0: 96, 20: 224}, "resolution_schedule_by": "epoch", "num_epochs": 20},
            "resolution_schedule: what holds from step 320 on never comes, for the training has 320 steps",
        ),
        (
            {},
            {"resolution_schedule": {0: 96, 2: 224}, "resolution_schedule_by": "epoch", "max_steps": 5},
            "resolution_schedule: what holds from step 32 on never comes, for the training has 5 steps",
        ),
        ({}, {"batch_size_schedule": {0: 64, 10**9: 96}}, "batch_size_schedule: what holds from step 1000000000 on"),
        ({}, {"batch_size_schedule": {0: 64, 9: 1001}}, "goes up to 1001 pairs, and there are 1000 rows"),
        ({}, {"batch_size_schedule": {0: 64, 9: 128}, "batch_size": 64}, "batch_size=64 times .*=1 is 64"),
        (
            {},
            {"batch_size_schedule": {0: 64, 9: 128}, "gradient_accumulation_steps": 3},
            "gradient_accumulation_steps=3 does not divide",
        ),
    ],
)
def test_settings_that_do_not_fit_model_or_rows(model, values, message):
    with pytest.raises(ConfigurationError, match=message):
        resolved(replace(CLIP, **model), **values)


# --- loaders ---


def data_set(tiny_data, processor, largest_side=None, **values) -> CLIPDataset:
    config = CLIPFinetuningConfig(**{"num_workers": 0, "image_resolution": 48, **values})
    transform = ImageTransform(config, augment=True, spec=ImageSpec(48, 48), largest_side=largest_side)
    return CLIPDataset(tiny_data.pairs(), processor, config, transform)


@pytest.mark.parametrize(
    ("values", "sides", "largest"),
    [
        ({"resolution_schedule": {0: 32, 0.5: 48}}, [32] * 4 + [48] * 4, 48),
        ({"training_resolutions": [32, 48, 64]}, None, 64),
    ],
)
def test_workers_give_one_side_a_batch(tiny_data, processor, values, sides, largest):
    values = {**values, "batch_size_schedule": {0: 3, 2: 5}, "num_epochs": 2}
    read = []
    for workers in (0, 2):
        data = data_set(tiny_data, processor, largest, num_workers=workers, **values)
        loader = create_training_loader(data, data.config, 5)
        plan = loader.batch_sampler.plan
        batches = []
        for epoch in range(2):
            loader.batch_sampler.set_position(epoch)
            assert len(loader) == plan.batches(epoch)
            batches += list(loader)
        read.append(batches)
    alone, together = read
    got = [tuple(batch["pixels"].shape) for batch in alone]
    assert got == [(plan.size(step), 3, plan.side(step), plan.side(step)) for step in range(plan.total_steps)]
    # 3 + 3 + 5 + 5 rows of 18 in the first epoch, then 5 + 5 + 5
    assert [shape[0] for shape in got] == [3, 3, 5, 5, 5, 5, 5]
    assert [shape[-1] for shape in got] == (sides[1:] if sides else [plan.side(step) for step in range(7)])
    for one, other in zip(alone, together, strict=True):
        assert one["rows"] == other["rows"]
        assert torch.equal(one["pixels"], other["pixels"])


def test_items_can_be_read_at_a_side(tiny_data, processor):
    data = data_set(tiny_data, processor)
    assert data[ViewKey(1, 2, 32, 0.5)]["pixel_values"].shape == (3, 32, 32)
    assert torch.equal(data[ViewKey(1, -1, 48, 1.0)]["pixel_values"], data[(1, 17)]["pixel_values"])
    assert data.fetch(ViewKey(0, 3, 32, 0.5)).pixels.shape == (3, 32, 32)


def test_a_data_set_of_its_own_keeps_pictures_large_enough(tiny_data, processor):
    config = CLIPFinetuningConfig(training_resolutions=[32, 64], num_workers=0, image_resolution=32)
    data = CLIPDataset(tiny_data.pairs(), processor, config)
    assert (data.image_transform.resolution, data.image_transform.largest_side) == (32, 64)
    assert {batch["pixels"].shape[-1] for batch in create_training_loader(data, config, 2)} == {32, 64}


def test_plans_that_do_not_fit_the_loader(tiny_data, processor):
    for values, batch, message in (
        ({"resolution_schedule": "auto"}, 4, "resolve the recipe first"),
        ({"resolution_schedule": {0: 32, 0.5: 64}}, 4, "ends at 64 pixels, .* makes pictures of 48"),
        ({"training_resolutions": [32, 64]}, 4, r"up to 64 pixels, .* for 48 .*largest_side=64"),
        ({"batch_size_schedule": {0: 3, 4: 6}}, 4, "goes up to 6 pairs, but the loader is asked for 4"),
    ):
        data = data_set(tiny_data, processor, **values)
        with pytest.raises(ConfigurationError, match=message):
            create_training_loader(data, data.config, batch)
