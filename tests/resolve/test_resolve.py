"""What is decided where the user said nothing, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from domainclip.config import CLIPFinetuningConfig, FrozenConfig, load_recipe, shipped_recipes
from domainclip.config.recipe_files import parse_recipe
from domainclip.errors import ConfigurationError
from domainclip.resolve import DataFacts, Decision, ModelFacts, contrastive_batch, resolve, steps_per_epoch
from domainclip.resolve.resolution import ResolutionRule
from resolve_cases import CLIP, PLAIN, SIGLIP, STARTER


def decided(config: CLIPFinetuningConfig, model: ModelFacts = CLIP, data: DataFacts = PLAIN):
    run = resolve(config, model, data)
    recipe, decisions = run.recipe, list(run.decisions)
    assert isinstance(recipe, FrozenConfig)
    reasons = {decision.key: decision.reason for decision in decisions}
    assert len(reasons) == len(decisions), "a key is decided once"
    for decision in decisions:
        assert getattr(recipe, decision.key) == decision.value
        assert len(decision.reason) > 5 and decision.reason == decision.reason.strip()
    return recipe, reasons


def test_inputs_follow_the_model():
    recipe, reasons = decided(CLIPFinetuningConfig(), STARTER)
    assert recipe.image_resolution == 160
    assert "image processor" in reasons["image_resolution"]
    assert recipe.max_sequence_length == 77
    assert decided(CLIPFinetuningConfig(), replace(CLIP, text_length=512))[0].max_sequence_length == 77
    assert decided(CLIPFinetuningConfig(), replace(CLIP, text_length=32))[0].max_sequence_length == 32


def test_fixed_text_length_is_kept_whole():
    recipe, reasons = decided(CLIPFinetuningConfig(), SIGLIP)
    assert recipe.max_sequence_length == 64
    assert "full length" in reasons["max_sequence_length"]
    assert decided(CLIPFinetuningConfig(max_sequence_length=64), SIGLIP)[0].max_sequence_length == 64
    with pytest.raises(ConfigurationError, match=r"max_sequence_length=32 .* full 64 tokens"):
        resolve(CLIPFinetuningConfig(max_sequence_length=32), SIGLIP, PLAIN)


def test_longer_text_than_the_tower_takes_is_refused():
    assert decided(CLIPFinetuningConfig(max_sequence_length=20))[0].max_sequence_length == 20
    with pytest.raises(ConfigurationError, match="more than the text tower's 77"):
        resolve(CLIPFinetuningConfig(max_sequence_length=78), CLIP, PLAIN)


@pytest.mark.parametrize(
    ("rows", "size"), [(8000, 256), (4096, 256), (1600, 100), (512, 32), (300, 32), (40, 20), (9, 4), (2, 2)]
)
def test_contrastive_batch_makes_sixteen_steps_an_epoch_or_has_32_pairs(rows, size):
    recipe, reasons = decided(CLIPFinetuningConfig(), data=replace(PLAIN, train_rows=rows))
    assert contrastive_batch(recipe) == size
    assert f"contrastive batch of {size}: " in reasons["batch_size"] and f" {rows:,} rows" in reasons["batch_size"]


def test_accumulation_divides_the_contrastive_batch():
    recipe, reasons = decided(CLIPFinetuningConfig(gradient_accumulation_steps=4))
    assert (recipe.batch_size, contrastive_batch(recipe)) == (64, 256)
    assert "4 steps" in reasons["batch_size"]
    recipe, reasons = decided(CLIPFinetuningConfig(batch_size=16, gradient_accumulation_steps=4))
    assert contrastive_batch(recipe) == 64
    assert "batch_size" not in reasons
    assert steps_per_epoch(recipe, 8000) == 125
    assert steps_per_epoch(recipe, 63) == 1  # the only batch, though partial


def test_batch_of_one_pair_has_nothing_to_contrast():
    with pytest.raises(ConfigurationError, match="batch_size=1"):
        resolve(CLIPFinetuningConfig(batch_size=1), CLIP, PLAIN)
    assert contrastive_batch(decided(CLIPFinetuningConfig(batch_size=1, gradient_accumulation_steps=2))[0]) == 2


def test_objective_follows_repeated_captions():
    recipe, reasons = decided(CLIPFinetuningConfig(), data=replace(PLAIN, repeated_caption_fraction=0.4))
    assert recipe.loss_type == "multi_positive"
    assert "40%" in reasons["loss_type"]
    assert decided(CLIPFinetuningConfig())[0].loss_type == "contrastive"
    kept, reasons = decided(
        CLIPFinetuningConfig(loss_type="contrastive"), data=replace(PLAIN, repeated_caption_fraction=0.4)
    )
    assert kept.loss_type == "contrastive"
    assert "loss_type" not in reasons


@pytest.mark.parametrize(
    ("facts", "values", "positives"),
    [
        ({}, {}, "caption"),
        ({"repeated_caption_fraction": 0.9, "labelled_fraction": 1.0, "classes": 6}, {}, "label"),
        ({"repeated_caption_fraction": 0.3, "labelled_fraction": 1.0, "classes": 6}, {}, "caption"),
        ({"repeated_caption_fraction": 0.9, "labelled_fraction": 1.0, "classes": 1}, {}, "caption"),
        ({"repeated_caption_fraction": 0.9, "labelled_fraction": 0.2, "classes": 6}, {}, "caption"),
        ({}, {"augment_text": True}, "label"),
        ({}, {"positives": "label"}, "label"),
        ({"repeated_caption_fraction": 0.9, "labelled_fraction": 1.0, "classes": 6}, {"positives": "auto"}, "label"),
    ],
)
def test_positives(facts, values, positives):
    assert decided(CLIPFinetuningConfig(**values), data=replace(PLAIN, **facts))[0].positives == positives


def test_temperature_is_the_models_own_and_trained_unless_set():
    recipe, reasons = decided(CLIPFinetuningConfig())
    assert (recipe.temperature, recipe.learnable_temp) == (0.01, True)
    assert "logit_scale" in reasons["temperature"]
    recipe, reasons = decided(CLIPFinetuningConfig(temperature=0.07))
    assert (recipe.temperature, recipe.learnable_temp) == (0.07, False)
    assert "temperature" not in reasons
    assert decided(CLIPFinetuningConfig(temperature=0.05, learnable_temp=True))[0].learnable_temp is True
    # The user's word on training it holds for the model's own temperature too.
    assert decided(CLIPFinetuningConfig(learnable_temp=False))[0].learnable_temp is False


def test_rates_per_tower():
    recipe, reasons = decided(CLIPFinetuningConfig(learning_rate=2e-5), STARTER)
    assert recipe.image_learning_rate == pytest.approx(2e-4)
    assert recipe.text_learning_rate == pytest.approx(2e-5)
    assert "ten times" in reasons["image_learning_rate"]
    recipe, _ = decided(CLIPFinetuningConfig(learning_rate=2e-5, image_learning_rate=1e-6), STARTER)
    assert recipe.image_learning_rate == 1e-6


def test_schedule():
    recipe, reasons = decided(CLIPFinetuningConfig(batch_size=100, num_epochs=10))  # 80 steps an epoch, 800 in all
    assert recipe.warmup_steps == 80
    assert "800 steps" in reasons["warmup_steps"]
    assert (recipe.eval_steps, recipe.save_steps) == (80, 80)  # at least once an epoch
    assert recipe.logging_steps == 16
    assert decided(CLIPFinetuningConfig(batch_size=2, num_epochs=10))[0].warmup_steps == 500
    assert decided(CLIPFinetuningConfig(batch_size=100, max_steps=7))[0].warmup_steps == 1
    set_, reasons = decided(CLIPFinetuningConfig(batch_size=100, warmup_steps=500, eval_steps=3, save_steps=1000))
    assert (set_.warmup_steps, set_.eval_steps, set_.save_steps) == (500, 3, 1000)
    assert not {"warmup_steps", "eval_steps", "save_steps"} & reasons.keys()


def test_small_data():
    recipe, _ = decided(CLIPFinetuningConfig(num_epochs=2), data=replace(PLAIN, train_rows=5))
    assert recipe.batch_size == 2
    assert (recipe.eval_steps, recipe.logging_steps, recipe.warmup_steps) == (2, 1, 1)


def test_flips():
    left_right = replace(PLAIN, names_left_right=True)
    assert decided(CLIPFinetuningConfig())[0].horizontal_flip is True
    assert decided(CLIPFinetuningConfig(), data=left_right)[0].horizontal_flip is False
    assert decided(CLIPFinetuningConfig(domain="medical"))[0].horizontal_flip is False
    # The industrial preset mirrors and turns; captions that name a resolution overrule it, the user overrules both.
    assert decided(CLIPFinetuningConfig(domain="industrial"))[0].rotate90 is True
    recipe, reasons = decided(CLIPFinetuningConfig(domain="industrial"), data=left_right)
    assert (recipe.horizontal_flip, recipe.rotate90, recipe.vertical_flip) == (False, False, True)
    assert "left or right" in reasons["horizontal_flip"]
    heights = replace(PLAIN, names_heights=True)
    recipe, _ = decided(CLIPFinetuningConfig(domain="industrial"), data=heights)
    assert (recipe.horizontal_flip, recipe.rotate90, recipe.vertical_flip) == (True, False, False)
    assert decided(CLIPFinetuningConfig(horizontal_flip=True), data=left_right)[0].horizontal_flip is True
    # Where a row of the same label is as good a match, sides are not told apart, and the preset stands.
    by_label = CLIPFinetuningConfig(domain="industrial", positives="label")
    recipe, _ = decided(by_label, data=replace(left_right, names_heights=True, labelled_fraction=1.0, classes=3))
    assert (recipe.horizontal_flip, recipe.rotate90, recipe.vertical_flip) == (True, True, True)


def test_reading():
    few = replace(PLAIN, train_rows=100)
    assert decided(CLIPFinetuningConfig(), data=few)[0].num_workers == 0
    many, reasons = decided(CLIPFinetuningConfig(), data=replace(PLAIN, train_rows=1_000_000, cores=3))
    assert many.num_workers == 2
    assert "3 cores" in reasons["num_workers"]
    assert decided(CLIPFinetuningConfig(num_workers=7), data=few)[0].num_workers == 7


def test_all_images_that_are_kept_decide_where_they_are_read():
    few = replace(PLAIN, train_rows=100, cores=3)
    assert decided(CLIPFinetuningConfig(), data=replace(few, validation_rows=1_000_000))[0].num_workers == 2
    # 100 augmented training images take 18.7 MiB; as evaluation shows them, for mining, 14.4 MiB more.
    values = {"image_cache_mb": 20, "augment_images": True, "probe_first": False, "probe_last": False}
    assert decided(CLIPFinetuningConfig(**values), data=few)[0].num_workers == 0
    assert decided(CLIPFinetuningConfig(**values), data=replace(few, validation_rows=10))[0].num_workers == 2
    for again in ({"hard_negative_batch_fraction": 0.5}, {"probe_first": True}, {"probe_last": True}):
        assert decided(CLIPFinetuningConfig(**{**values, **again}), data=few)[0].num_workers == 2


def test_domain_preset_lies_between_defaults_and_what_is_set():
    recipe, reasons = decided(CLIPFinetuningConfig(domain="medical"))
    assert (recipe.learning_rate, recipe.horizontal_flip) == (3e-5, False)
    assert "preset" in reasons["learning_rate"]
    # Set, even to the default, it stays.
    recipe, reasons = decided(CLIPFinetuningConfig(domain="medical", learning_rate=5e-5))
    assert recipe.learning_rate == 5e-5
    assert "learning_rate" not in reasons


@pytest.mark.parametrize("name", shipped_recipes())
@pytest.mark.parametrize("model", [CLIP, SIGLIP, STARTER])
def test_saved_recipe_repeats_the_run(name, model):
    data = replace(PLAIN, repeated_caption_fraction=0.8, labelled_fraction=1.0, classes=5, names_left_right=True)
    recipe, _ = decided(load_recipe(name, environment={}), model, data)
    text = yaml.safe_dump(recipe.to_dict(), sort_keys=True)
    again, later = decided(CLIPFinetuningConfig(**parse_recipe(text, "recipe.yaml")[0]), model, data)
    assert again.to_dict() == recipe.to_dict()
    assert later == {}


@pytest.mark.parametrize(("rows", "epochs"), [(100, 30), (500, 24), (1000, 12), (1200, 10), (100_000, 10)])
def test_few_rows_are_shown_more_often(rows, epochs):
    recipe, reasons = decided(CLIPFinetuningConfig(), data=replace(PLAIN, train_rows=rows))
    assert recipe.num_epochs == epochs
    assert f"{rows:,} rows" in reasons["num_epochs"]
    assert decided(CLIPFinetuningConfig(num_epochs=3), data=replace(PLAIN, train_rows=rows))[0].num_epochs == 3


def test_small_data_holds_the_training_back():
    few = replace(PLAIN, train_rows=999)
    recipe, reasons = decided(CLIPFinetuningConfig(), data=few)
    assert "999 pairs" in reasons["small_data"]
    assert (recipe.layer_decay, recipe.weight_decay) == (0.75, 0.05)
    assert decided(CLIPFinetuningConfig(), STARTER, few)[0].layer_decay == 0.9
    # What is set stays, and adapters hold all layers back already.
    recipe, _ = decided(CLIPFinetuningConfig(weight_decay=0.2, lora_r=8), data=few)
    assert (recipe.weight_decay, recipe.layer_decay) == (0.2, 1.0)
    for config, data in ((CLIPFinetuningConfig(small_data=False), few), (CLIPFinetuningConfig(), PLAIN)):
        recipe, reasons = decided(config, data=data)
        assert (recipe.small_data, recipe.layer_decay, recipe.weight_decay) == (False, 1.0, 0.01)
        assert "small_data" not in reasons
    assert decided(CLIPFinetuningConfig(small_data=True))[0].layer_decay == 0.75


def test_batch_norm_keeps_its_statistics_where_the_projections_come_first():
    few = replace(PLAIN, train_rows=1200)
    recipe, reasons = decided(CLIPFinetuningConfig(), STARTER, few)
    assert recipe.probe_first
    assert recipe.freeze_batch_norm
    assert recipe.image_learning_rate == pytest.approx(4 * recipe.learning_rate)
    assert "four times" in reasons["image_learning_rate"]
    recipe, _ = decided(CLIPFinetuningConfig(probe_first=False), STARTER, few)
    assert not recipe.freeze_batch_norm
    assert recipe.image_learning_rate == pytest.approx(10 * recipe.learning_rate)


def test_classes_have_a_term_where_most_rows_have_one():
    labelled = replace(PLAIN, labelled_fraction=0.9, classes=3)
    recipe, reasons = decided(CLIPFinetuningConfig(), data=labelled)
    assert recipe.classification_weight == 1.0
    assert "3 classes" in reasons["classification_weight"]
    assert decided(CLIPFinetuningConfig(classification_weight=0.25), data=labelled)[0].classification_weight == 0.25
    for data in (PLAIN, replace(labelled, labelled_fraction=0.4), replace(labelled, classes=1)):
        assert decided(CLIPFinetuningConfig(), data=data)[0].classification_weight == 0.0


@pytest.mark.parametrize(
    ("values", "facts", "expected", "reason"),
    [
        ({}, {}, True, "of the model they have chosen"),
        ({}, {"test_rows": 0}, False, "no test split"),
        ({}, {"validation_rows": 0}, False, None),
        ({"probe_last": False}, {}, False, None),
        ({"probe_first": False}, {}, False, None),
        ({"wise_ft": True, "retention_data": ["data"]}, {}, False, "wise_ft chooses"),
        ({"calibrate_temperature": True}, {}, False, "calibrate_temperature fits"),
        ({"fit_validation_rows": False}, {}, False, None),
        ({}, {"train_rows": 5000}, False, None),
    ],
)
def test_validation_rows_are_learned_from_where_nothing_else_needs_them(values, facts, expected, reason):
    data = replace(PLAIN, **{"train_rows": 300, "validation_rows": 30, "test_rows": 30, **facts})
    recipe, reasons = decided(CLIPFinetuningConfig(**values), data=data)
    assert recipe.fit_validation_rows is expected
    assert ("fit_validation_rows" in reasons) == (reason is not None)
    assert reason is None or reason in reasons["fit_validation_rows"]
    if reason is not None and not expected:
        with pytest.raises(ConfigurationError, match=f"fit_validation_rows=true does not go.*{reason}"):
            decided(CLIPFinetuningConfig(fit_validation_rows=True, **values), data=data)


def test_a_resolution_is_chosen_for_the_recipe_as_the_run_has_it_and_counts_as_set():
    model, asked = replace(CLIP, resolutions=ResolutionRule(224, 16)), []

    def choose(resolution):
        def chosen(recipe):
            asked.append(recipe)
            return [Decision("image_resolution", resolution, "it is enough")]

        return chosen

    run = resolve(CLIPFinetuningConfig(auto_resolution=True), model, PLAIN, choose_resolution=choose(96))
    set_by_user = resolve(CLIPFinetuningConfig(image_resolution=96), model, PLAIN)
    assert run.recipe.to_dict() == set_by_user.recipe.to_dict()
    assert run.decisions == (Decision("image_resolution", 96, "it is enough"), *set_by_user.decisions)
    assert asked[0].image_resolution == 224
    assert asked[0].batch_size == run.recipe.batch_size
    with pytest.raises(ConfigurationError, match="image_resolution=100 does not fit"):
        resolve(CLIPFinetuningConfig(auto_resolution=True), model, PLAIN, choose_resolution=choose(100))


GROUPS = ("data", "model", "objective", "optim", "probe", "memory", "evaluation", "references", "resolution", "record")


@pytest.mark.parametrize("group", GROUPS)
def test_the_groups_of_a_run_are_frozen_copies(group):
    run = resolve(CLIPFinetuningConfig(prompt_templates=["a photo of {}"]), CLIP, PLAIN)
    found = getattr(run, group)
    for key in type(found).model_fields:
        before = getattr(found, key)
        with pytest.raises(ConfigurationError, match=f"{key} cannot be changed: a run works on a frozen copy"):
            setattr(found, key, before)
    run.evaluation.prompt_templates.append("another {}")
    assert run.recipe.prompt_templates == ["a photo of {}"]


@pytest.mark.parametrize(("values", "may"), [({}, True), ({"freeze_batch_norm": False}, False)])
def test_batch_norm_may_be_frozen_where_the_user_has_not_said_what_becomes_of_it(values, may):
    assert resolve(CLIPFinetuningConfig(**values), STARTER, PLAIN).may_freeze_batch_norm is may
