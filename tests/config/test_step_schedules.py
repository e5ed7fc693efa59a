"""Schedules of batches and resolutions in a recipe, and loaders that follow them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import yaml

from batch_cases import training_loader
from domainclip.config import CLIPFinetuningConfig, parse_overrides
from domainclip.data.dataset import CLIPDataset
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.transforms import ImageTransform
from domainclip.data.step_plan import ViewKey
from domainclip.errors import ConfigurationError
from domainclip.resolve import DataFacts, ModelFacts, resolve
from domainclip.resolve.resolution import ResolutionRule
from domainclip.resolve.schedule import batch_schedule, resolved_steps

CLIP = ModelFacts(224, 77, False, "transformer", "transformer", 0.01, resolutions=ResolutionRule(224, 32, 32))
ROWS = DataFacts(1000, 0.0, 0.0, 0, False, 8)


def resolved(model: ModelFacts = CLIP, data: DataFacts = ROWS, **values):
    run = resolve(CLIPFinetuningConfig(**values), model, data)
    recipe, decisions = run.recipe, list(run.decisions)
    return recipe, {decision.key: decision for decision in decisions}


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
        (
            {"resolution_schedule": {0: 96, 2: 128}},
            r"a fraction .* is below 1 \(one is 2\).*resolution_schedule_by=epoch",
        ),
        ({"resolution_schedule": "auto", "resolution_schedule_by": "epoch"}, "auto counts in fractions"),
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
        (ResolutionRule(224, 32, 32), 224, {0.0: 192, 0.6: 224}),
        (ResolutionRule(224, 16, 16), 224, {0.0: 176, 0.6: 224}),
        (ResolutionRule(160, 32, 64), 160, {0.0: 128, 0.6: 160}),
        (ResolutionRule(96, 32, 64), 96, {0.0: 64, 0.6: 96}),
        (ResolutionRule(32, 32, 32), 32, {0.0: 32}),
        (ResolutionRule(64, 32, 64), 64, {0.0: 64}),
    ],
)
def test_automatic_resolutions_rise_to_the_whole_one(rule, full, expected):
    facts = replace(CLIP, native_resolution=rule.native, resolutions=rule)
    recipe, decisions = resolved(facts, resolution_schedule="auto")
    assert recipe.resolution_schedule == expected == decisions["resolution_schedule"].value
    assert recipe.image_resolution == full
    assert "image_resolution" in decisions["resolution_schedule"].reason
    assert all(rule.allows(resolution) for resolution in recipe.resolution_schedule.values())
    again = resolve(CLIPFinetuningConfig(**recipe.to_dict()), facts, ROWS).recipe
    assert again.resolution_schedule == expected


def test_where_a_schedule_ends_is_the_resolution_of_the_model():
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
        ({"resolutions": None}, {"resolution_schedule": "auto"}, "resolution_schedule .* takes 224 pixels only"),
        ({"resolutions": None}, {"training_resolutions": [224]}, "training_resolutions .* takes 224 pixels only"),
        ({}, {"resolution_schedule": {0: 100, 0.5: 224}}, "resolution_schedule: 100 does not fit.*96 or 128"),
        ({}, {"training_resolutions": [100, 224]}, "training_resolutions: 100 does not fit.*96 or 128"),
        (
            {},
            {"resolution_schedule": {0: 96}, "image_resolution": 224, "probe_last": False},
            "ends at 96 pixels and image_resolution=224",
        ),
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
        ({}, {"batch_size_schedule": {0: 64, 9: 1001}}, "goes up to 1001 pairs, and training has 1,000 rows"),
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


def data_set(tiny_data, processor, largest_resolution=None, **values) -> CLIPDataset:
    config = CLIPFinetuningConfig(**{"num_workers": 0, "image_resolution": 48, **values})
    transform = ImageTransform(config, augment=True, spec=ImageSpec(48, 48), largest_resolution=largest_resolution)
    return CLIPDataset(tiny_data.pairs(), processor, config, transform)


@pytest.mark.parametrize(
    ("values", "resolutions", "largest"),
    [
        ({"resolution_schedule": {0: 32, 0.5: 48}}, [32] * 4 + [48] * 4, 48),
        ({"training_resolutions": [32, 48, 64]}, None, 64),
    ],
)
def test_workers_give_one_resolution_a_batch(tiny_data, processor, values, resolutions, largest):
    values = {**values, "batch_size_schedule": {0: 3, 2: 5}, "num_epochs": 2}
    read = []
    for workers in (0, 2):
        data = data_set(tiny_data, processor, largest, num_workers=workers, **values)
        loader = training_loader(data, data.config, 5)
        plan = loader.batch_sampler.plan
        batches = []
        for epoch in range(2):
            loader.batch_sampler.set_position(epoch)
            assert len(loader) == plan.batches(epoch)
            batches += list(loader)
        read.append(batches)
    alone, together = read
    got = [tuple(batch["pixels"].shape) for batch in alone]
    assert got == [
        (plan.size(step), 3, plan.resolution(step), plan.resolution(step)) for step in range(plan.total_steps)
    ]
    # 3 + 3 + 5 + 5 rows of 18 in the first epoch, then 5 + 5 + 5
    assert [shape[0] for shape in got] == [3, 3, 5, 5, 5, 5, 5]
    assert [shape[-1] for shape in got] == (
        resolutions[1:] if resolutions else [plan.resolution(step) for step in range(7)]
    )
    for one, other in zip(alone, together, strict=True):
        assert one["rows"] == other["rows"]
        assert torch.equal(one["pixels"], other["pixels"])


def test_items_can_be_read_at_a_resolution(tiny_data, processor):
    data = data_set(tiny_data, processor)
    assert data[ViewKey(1, 2, 32, 0.5)]["pixel_values"].shape == (3, 32, 32)
    assert torch.equal(data[ViewKey(1, -1, 48, 1.0)]["pixel_values"], data[(1, 17)]["pixel_values"])
    assert data.fetch(ViewKey(0, 3, 32, 0.5)).pixels.shape == (3, 32, 32)


def test_a_data_set_of_its_own_keeps_images_large_enough(tiny_data, processor):
    config = CLIPFinetuningConfig(training_resolutions=[32, 64], num_workers=0, image_resolution=32)
    data = CLIPDataset(tiny_data.pairs(), processor, config)
    assert (data.image_transform.resolution, data.image_transform.largest_resolution) == (32, 64)
    assert {batch["pixels"].shape[-1] for batch in training_loader(data, config, 2)} == {32, 64}


def test_plans_that_do_not_fit_the_loader(tiny_data, processor):
    for values, batch, message in (
        ({"resolution_schedule": "auto"}, 4, "resolve the recipe first"),
        ({"resolution_schedule": {0: 32, 0.5: 64}}, 4, "ends at 64 pixels, .* makes images of 48"),
        ({"training_resolutions": [32, 64]}, 4, r"up to 64 pixels, .* for 48 .*largest_resolution=64"),
        ({"batch_size_schedule": {0: 3, 4: 6}}, 4, "goes up to 6 pairs, but the loader is asked for 4"),
    ):
        data = data_set(tiny_data, processor, **values)
        with pytest.raises(ConfigurationError, match=message):
            training_loader(data, data.config, batch)
