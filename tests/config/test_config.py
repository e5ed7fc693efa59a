"""The recipe: defaults, messages, sources and their order, files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from domainclip.config import CLIPFinetuningConfig, load_recipe, parse_overrides, shipped_recipes
from domainclip.config.located_yaml import yaml_text
from domainclip.config.recipe_files import parse_recipe
from domainclip.config.recipe_sources import environment_values
from domainclip.domains import load_domain, shipped_domains
from domainclip.errors import CLIPFinetuningError, ConfigurationError

# The defaults that users of the public API rely on, written out by hand.
PUBLIC_DEFAULTS = {
    "model_name": "openai/clip-vit-base-patch32",
    "domain": "general",
    "learning_rate": 5e-5,
    "batch_size": None,
    "num_epochs": 10,
    "max_sequence_length": 77,
    "image_resolution": 224,
    "use_mps": True,
    "mixed_precision": True,
    "gradient_accumulation_steps": 1,
    "output_dir": "outputs",
    "data_path": "data",
    "train_split": 0.8,
    "val_split": 0.1,
    "test_split": 0.1,
    "num_workers": 4,
    "shuffle": True,
    "augment_images": True,
    "augment_text": False,
    "loss_type": "contrastive",
    "temperature": 0.07,
    "learnable_temp": False,
    "hard_negative_ratio": 0.5,
    "hard_negative_mining_strategy": "semi-hard",
    "hard_negative_weight": 2.0,
    "domain_weight": 1.0,
    "temperature_scheduling": False,
    "temperature_schedule_type": "warmup",
    "multi_scale_scales": [1.0, 0.75, 0.5],
    "multi_scale_weights": [1.0, 0.75, 0.5],
    "similarity_metric": "cosine",
    "normalize_embeddings": True,
    "retrieval_top_k": 5,
    "alignment_visualization": False,
    "visualization_output_dir": "outputs/visualizations",
    "warmup_steps": 500,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "save_steps": 1000,
    "eval_steps": 500,
    "logging_steps": 100,
    "seed": 42,
}


@pytest.mark.parametrize(("key", "value"), PUBLIC_DEFAULTS.items())
def test_public_default(key, value):
    found = getattr(CLIPFinetuningConfig(), key)
    assert found == value
    assert type(found) is type(value)


def test_public_values_are_accepted_as_keywords():
    config = CLIPFinetuningConfig(**PUBLIC_DEFAULTS)
    assert {key: config.to_dict()[key] for key in PUBLIC_DEFAULTS} == PUBLIC_DEFAULTS


def test_every_key_has_a_description():
    assert [key for key, field in CLIPFinetuningConfig.model_fields.items() if not field.description] == []


def test_lists_are_not_shared_between_configs():
    CLIPFinetuningConfig().multi_scale_scales.append(9.0)
    assert CLIPFinetuningConfig().multi_scale_scales == [1.0, 0.75, 0.5]


@pytest.mark.parametrize(
    ("values", "begins"),
    [
        ({"learning_rate": 0}, "Learning rate must be positive"),
        ({"learning_rate": -1e-5}, "Learning rate must be positive"),
        ({"batch_size": 0}, "Batch size must be positive"),
        ({"batch_size": -4}, "Batch size must be positive"),
        ({"temperature": 0.0}, "Temperature must be positive"),
        ({"domain": "medicine"}, "Invalid domain 'medicine'"),
        ({"num_epochs": 0}, "Number of epochs must be positive"),
        ({"similarity_metric": "manhattan"}, "Invalid metric 'manhattan'"),
        ({"hard_negative_mining_strategy": "soft"}, "Invalid mining strategy 'soft'"),
        ({"temperature_schedule_type": "step"}, "Invalid temperature schedule 'step'"),
        ({"weight_decay": -1}, "Weight decay must be zero or more"),
        ({"image_resolution": 8}, "Image resolution must be at least 16"),
        ({"learning_rate": float("nan")}, "Learning rate must be a finite number"),
        ({"learning_rate": float("inf")}, "Learning rate must be a finite number"),
        ({"learning_rate": "fast"}, "Learning rate must be a valid number"),
        ({"seed": 1.5}, "Seed must be a valid integer"),
        ({"data_path": ""}, "Data path must have at least 1 character"),
        ({"prompt_templates": []}, "Prompt templates must have at least 1 item"),
        ({"train_split": 0.9}, "train_split, val_split and test_split must sum to 1 (they sum to 1.1)"),
        ({"lock_image": True, "lock_text": True}, "lock_image and lock_text together leave nothing to train"),
        ({"multi_scale_scales": [1.0]}, "multi_scale_scales has 1 entries and multi_scale_weights 3"),
        ({"prompt_templates": ["a photo"]}, "Prompt template 'a photo' must contain {} exactly once"),
    ],
)
def test_wrong_value_is_told_plainly(values, begins):
    with pytest.raises(ConfigurationError) as caught:
        CLIPFinetuningConfig(**values)
    assert str(caught.value).startswith(begins)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, CLIPFinetuningError)
    assert "Input should" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_message_names_key_and_value():
    with pytest.raises(ConfigurationError, match=r"learning_rate=-2\.0"):
        CLIPFinetuningConfig(learning_rate=-2.0)


def test_several_errors_are_all_told():
    with pytest.raises(ConfigurationError) as caught:
        CLIPFinetuningConfig(learning_rate=-1, batch_size=0)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("slip", "meant"), [("learning_rte", "learning_rate"), ("batchsize", "batch_size"), ("num_epoch", "num_epochs")]
)
def test_unknown_key_names_the_nearest(slip, meant):
    with pytest.raises(ConfigurationError, match=f"Unknown key '{slip}': did you mean '{meant}'"):
        CLIPFinetuningConfig(**{slip: 1})
    with pytest.raises(ConfigurationError, match=f"did you mean '{meant}'"):
        CLIPFinetuningConfig.from_dict({slip: 1})
    with pytest.raises(ConfigurationError, match=f"did you mean '{meant}'"):
        setattr(CLIPFinetuningConfig(), slip, 1)


def test_assignment_is_checked_and_a_refused_one_changes_nothing():
    config = CLIPFinetuningConfig()
    with pytest.raises(ConfigurationError, match="Learning rate must be positive"):
        config.learning_rate = -1
    assert config.learning_rate == 5e-5
    assert not config.is_set("learning_rate")
    config.learning_rate = 1e-3
    assert config.is_set("learning_rate")

    # A contradiction between two keys is found after both values are known: the assignment is taken back.
    config.lock_image = True
    with pytest.raises(ConfigurationError, match="nothing to train"):
        config.lock_text = True
    assert config.lock_text is False
    assert not config.is_set("lock_text")
    with pytest.raises(ConfigurationError, match="must sum to 1"):
        config.train_split = 0.5
    assert config.train_split == 0.8


def test_frozen_copy_neither_changes_nor_follows_its_original():
    config = CLIPFinetuningConfig(seed=7)
    frozen = config.frozen()
    with pytest.raises(ConfigurationError, match="seed cannot be changed"):
        frozen.seed = 8
    config.seed = 9
    config.multi_scale_scales.append(0.1)
    assert frozen.seed == 7
    assert frozen.multi_scale_scales == [1.0, 0.75, 0.5]
    assert frozen.is_set("seed")
    assert not frozen.is_set("batch_size")
    assert frozen.to_dict(only_set=True) == {"seed": 7}


def test_unset_differs_from_set():
    config = CLIPFinetuningConfig(warmup_steps=500, batch_size=None)
    assert config.is_set("warmup_steps")  # its default value, but the user's word
    assert not config.is_set("save_steps")
    assert not config.is_set("batch_size")  # null is how a file says "decide for me"
    assert config.to_dict(only_set=True) == {"warmup_steps": 500, "batch_size": None}


def test_updated_keeps_what_was_set_and_checks():
    config = CLIPFinetuningConfig(seed=1).updated(batch_size=4)
    assert config.to_dict(only_set=True) == {"seed": 1, "batch_size": 4}
    with pytest.raises(ConfigurationError, match="Batch size must be positive"):
        config.updated(batch_size=0)


def test_dict_round_trip():
    config = CLIPFinetuningConfig(
        learning_rate=1e-4, domain="medical", multi_scale_scales=[1.0], multi_scale_weights=[2]
    )
    assert CLIPFinetuningConfig.from_dict(config.to_dict()) == config
    assert CLIPFinetuningConfig.from_dict(config.to_dict(only_set=True)).to_dict() == config.to_dict()


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "learning_rate": st.floats(1e-12, 1.0),
            "temperature": st.floats(1e-6, 10.0),
            "seed": st.integers(0, 2**32 - 1),
            "batch_size": st.integers(1, 10_000),
            "output_dir": st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20),
            "strict": st.booleans(),
            "prompt_templates": st.lists(st.sampled_from(["a {}", "{}: yes #no", "'{}'"]), min_size=1, max_size=3),
        },
    )
)
def test_yaml_round_trip_of_any_recipe(values):
    config = CLIPFinetuningConfig(**values)
    text = yaml_text(config.to_dict(only_set=True))
    assert yaml.safe_load(text) == config.to_dict(only_set=True)  # for readers of YAML 1.1, too
    read, _ = parse_recipe(text, "recipe.yaml")
    assert CLIPFinetuningConfig(**read) == config


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_from_yaml(tmp_path):
    config = CLIPFinetuningConfig.from_yaml(write(tmp_path, "learning_rate: 1e-5\ndomain: medical\nnum_epochs: 3\n"))
    assert (config.learning_rate, config.domain, config.num_epochs) == (1e-5, "medical", 3)
    assert config.to_dict(only_set=True).keys() == {"learning_rate", "domain", "num_epochs"}


def test_empty_recipe_file_sets_nothing(tmp_path):
    assert CLIPFinetuningConfig.from_yaml(write(tmp_path, "# nothing\n")).to_dict(only_set=True) == {}


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("seed: 1\nlerning_rate: 1\n", 2, "did you mean 'learning_rate'"),
        ("seed: 1\n\n# comment\nlearning_rate: -1\n", 4, "Learning rate must be positive"),
        ("seed: 1\nbatch_size: [1\n", 3, "not valid YAML"),
        ("seed: 1\nclass_hierarchy: &a\n  - x: *a\n", 2, "contains itself"),
        ("seed: 1\nnum_epochs: 2\nseed: 2\n", 3, r"'seed' stands twice \(first on line 1\)"),
        ("seed: 1\n\tbatch_size: 2\n", 2, "not valid YAML"),
        ("seed: 1\n7: 2\n", 2, "Unknown key '7'"),
        ("on: 1\n", 1, "Unknown key 'on'"),
        ("seed: 1\nbatch_size: many\n", 2, "Batch size must be a valid integer"),
        ("seed: 1\n---\nseed: 2\n", 2, "not valid YAML"),
    ],
)
def test_wrong_recipe_file_is_told_with_file_and_line(tmp_path, text, line, what):
    path = write(tmp_path, text)
    with pytest.raises(ConfigurationError, match=what) as caught:
        CLIPFinetuningConfig.from_yaml(path)
    assert f"{path} line {line}" in str(caught.value)


def test_recipe_that_is_no_mapping_not_there_or_not_text(tmp_path):
    with pytest.raises(ConfigurationError, match="list of 'key: value' lines"):
        CLIPFinetuningConfig.from_yaml(write(tmp_path, "- seed\n"))
    with pytest.raises(ConfigurationError, match="does not exist"):
        CLIPFinetuningConfig.from_yaml(tmp_path / "no.yaml")
    (tmp_path / "latin.yaml").write_bytes("domain: caf\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        CLIPFinetuningConfig.from_yaml(tmp_path / "latin.yaml")
    with pytest.raises(ConfigurationError, match=r"Unknown recipe 'medcal'\. Did you mean 'medical'"):
        load_recipe("medcal")


def test_text_keys_take_their_words_as_they_are():
    values = parse_overrides(
        [
            "output_dir=2024-01-01",
            "data_path=123",
            "label_col=yes",
            "caption_col=a: b",
            "vision_model_name=null",
            "group_col=1e5",
        ]
    )
    assert values == {
        "output_dir": "2024-01-01",
        "data_path": "123",
        "label_col": "yes",
        "caption_col": "a: b",
        "vision_model_name": None,
        "group_col": "1e5",
    }
    CLIPFinetuningConfig(**values)


def test_overrides_are_read_as_yaml():
    values = parse_overrides(["learning-rate=1e-5", "lock_text=true", "batch_size=null", "multi_scale_scales=[1, 0.5]"])
    assert values == {"learning_rate": 1e-5, "lock_text": True, "batch_size": None, "multi_scale_scales": [1, 0.5]}
    for wrong in ("learning_rate", "=3"):
        with pytest.raises(ConfigurationError, match="is not key=value"):
            parse_overrides([wrong])


def test_environment():
    environment = {"DOMAINCLIP_LEARNING_RATE": "1e-4", "DOMAINCLIP_LOCK_TEXT": "true", "PATH": "/bin"}
    assert environment_values(environment) == {"learning_rate": 1e-4, "lock_text": True}
    # Variables of the package that are no keys of a recipe.
    assert environment_values({"DOMAINCLIP_DATA": "x", "DOMAINCLIP_CACHE": "y"}) == {}
    with pytest.raises(ConfigurationError, match="did you mean DOMAINCLIP_LEARNING_RATE"):
        environment_values({"DOMAINCLIP_LERNING_RATE": "1"})


def test_environment_of_the_process_is_read(monkeypatch):
    monkeypatch.setenv("DOMAINCLIP_LEARNING_RATE", "2e-4")
    assert load_recipe().learning_rate == 2e-4


def test_precedence_of_file_environment_and_command_line(tmp_path):
    path = write(tmp_path, "learning_rate: 1.0e-3\nseed: 1\nnum_epochs: 2\n")
    config = load_recipe(path, {"seed": 3}, {"DOMAINCLIP_SEED": "2", "DOMAINCLIP_LEARNING_RATE": "2e-3"})
    assert (config.seed, config.learning_rate, config.num_epochs) == (3, 2e-3, 2)
    assert not config.is_set("batch_size")


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_is_valid(name):
    config = load_recipe(name, environment={})
    assert config.to_dict(only_set=True)
    assert (Path(__file__).parents[2] / "src/domainclip/config/recipes" / f"{name}.yaml").is_file()


def test_every_domain_but_the_general_has_a_preset():
    presets = {domain: load_domain(domain).recipe_values() for domain in shipped_domains()}
    assert presets["general"] == {}
    rates = {domain: presets[domain]["learning_rate"] for domain in ("medical", "industrial", "scientific")}
    assert rates["medical"] == min(rates.values())
    assert presets["medical"]["horizontal_flip"] is False


def test_building_a_config_has_no_side_effects(tmp_path):
    code = (
        "import sys; from domainclip.config import CLIPFinetuningConfig, load_recipe; "
        "CLIPFinetuningConfig(output_dir='made/by/config', data_path='nowhere'); load_recipe('medical'); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_a_key_given_twice_is_what_a_shell_makes_of_braces():
    with pytest.raises(ConfigurationError, match=r"batch_size_schedule is given twice.*quotes in a shell"):
        parse_overrides(["batch_size_schedule=0:8", "batch_size_schedule=4:24"])


def test_the_training_fraction_is_what_the_others_leave() -> None:
    assert CLIPFinetuningConfig(val_split=0).train_split == pytest.approx(0.9)
    assert CLIPFinetuningConfig(val_split=0, test_split=0).train_split == 1
    assert CLIPFinetuningConfig(test_split=0.3).train_split == pytest.approx(0.6)
    with pytest.raises(ConfigurationError, match="must sum to 1"):
        CLIPFinetuningConfig(val_split=0.6, test_split=0.6)
