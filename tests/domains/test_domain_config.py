"""Domains: shipped and a user's own, inheritance, reasons, errors with file and line, what a run keeps of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from domain_config_cases import _resolved, write
from domainclip.config import CLIPFinetuningConfig
from domainclip.domains.domain import RECIPE_SECTIONS, DomainConfig, recipe_sections
from domainclip.domains.files import load_domain, shipped_domains
from domainclip.errors import ConfigurationError

FOLDER = Path(__file__).parents[2] / "src/domainclip/domains/shipped"


# --- what is shipped ---


def test_the_shipped_domains_are_the_four_families():
    assert shipped_domains() == ["general", "industrial", "medical", "scientific"]
    for name in shipped_domains():
        domain = load_domain(name)
        assert domain.name == domain.family == name
        assert domain.description


@pytest.mark.parametrize("name", ["general", "industrial", "medical", "scientific"])
def test_every_choice_of_a_shipped_domain_has_its_reason(name):
    """Against the file read by plain YAML: every leaf of every section is a mapping of value and because."""
    raw = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    sections = {key: value for key, value in raw.items() if isinstance(value, dict)}
    expected = {}
    for section, choices in sections.items():
        for key, choice in choices.items():
            assert set(choice) == {"value", "because"}, f"{section}.{key} has no reason"
            assert len(choice["because"].split()) > 3, f"{section}.{key} has a reason of few words"
            expected[f"{section}.{key}"] = (choice["value"], choice["because"])
    domain = load_domain(name)
    assert {choice.key: (choice.value, choice.because) for choice in domain.choices()} == expected
    assert all(domain.reason(key) == because for key, (_, because) in expected.items())


def test_shipped_domains_need_no_extra_and_their_glossaries_load():
    for name in ("medical", "industrial", "scientific"):
        domain = load_domain(name)
        assert domain.texts.load() is not None
        # Local contrast and stain separation are scikit-image's, which is an extra: no preset may insist on it.
        assert domain.images.clahe_clip_limit is None
        assert domain.images.stain_jitter == 0


def test_medical_mirrors_nothing():
    recipe, reasons = _resolved(CLIPFinetuningConfig(domain="medical"))
    assert (recipe.horizontal_flip, recipe.vertical_flip, recipe.rotate90) == (False, False, False)
    assert "Left and right" in reasons["horizontal_flip"]


def test_every_recipe_key_has_one_section_or_none():
    homes = recipe_sections()
    assert set(homes.values()) == set(RECIPE_SECTIONS)
    assert set(homes) < set(CLIPFinetuningConfig.model_fields)
    assert {"data_path", "output_dir", "model_name", "domain", "seed", "device", "retention_data"}.isdisjoint(homes)
    assert homes["horizontal_flip"] == "augmentation"
    assert homes["temperature"] == homes["loss_type"] == "loss"
    assert homes["learning_rate"] == homes["early_stopping_patience"] == "training"
    assert homes["evaluation_metrics"] == "evaluation"


# --- reading, reasons, inheritance ---


def test_a_domain_of_ones_own(tmp_path):
    path = write(
        tmp_path,
        "dental.yaml",
        """
extends: medical
description: Bitewing radiographs
images:
  rotation_degrees: {value: 10, because: "the holder tilts"}
training:
  learning_rate: {value: 1e-5, because: "four hundred images"}
  num_epochs: 30
""",
    )
    domain, medical = load_domain(path), load_domain("medical")
    assert (domain.name, domain.description, domain.family) == ("dental", "Bitewing radiographs", "medical")
    assert domain.extends == ["medical"]
    assert domain.images.rotation_degrees == 10
    assert domain.images.crop_border == medical.images.crop_border
    values = domain.recipe_values()
    assert values == medical.recipe_values() | {"learning_rate": 1e-5, "num_epochs": 30}
    assert type(values["learning_rate"]) is float  # YAML 1.1 reads 1e-5 as text
    assert domain.reason("training.learning_rate") == "four hundred images"
    assert domain.reason("training.num_epochs") is None  # the parent's reason was for the parent's value
    assert domain.reason("augmentation.rotate90") == medical.reason("augmentation.rotate90")
    places = {choice.key: choice.place for choice in domain.choices()}
    assert places["training.num_epochs"] == f"{path} line 8"
    assert places["augmentation.rotate90"].startswith("domain medical line ")


def test_inheritance_goes_deep_and_starts_at_the_file(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    write(
        tmp_path,
        "base.yaml",
        "name: base\nfamily: industrial\ntraining: {num_epochs: 3, weight_decay: 0.1}\n"
        "prompts: {class_names: {good: [fine], bad: [broken, torn]}}\n",
    )
    write(
        tmp_path / "sub",
        "middle.yaml",
        "extends: ../base.yaml\ntraining: {num_epochs: 4}\nprompts: {class_names: {bad: [cracked]}}\n",
    )
    top = write(tmp_path / "sub", "top.yaml", "extends: middle.yaml\ntraining: {weight_decay: null}\n")
    monkeypatch.chdir(tmp_path.parent)
    domain = load_domain(top)
    assert domain.extends == ["middle", "base"]
    assert domain.family == "industrial"
    assert domain.recipe_values() == {"num_epochs": 4}  # null takes back what was inherited
    assert domain.prompts.class_names == {"good": ["fine"], "bad": ["cracked"]}  # mappings merge, lists replace
    assert domain.name == "top" and domain.description == "Extends middle."


def test_a_reason_for_a_whole_mapping_holds_for_what_was_given_with_it(tmp_path):
    write(
        tmp_path, "parent.yaml", 'prompts:\n  class_names: {value: {a: [x], b: [y]}, because: "as the atlas has it"}\n'
    )
    child = write(tmp_path, "child.yaml", "extends: parent.yaml\nprompts: {class_names: {b: [z]}}\n")
    domain = load_domain(child)
    assert domain.reason("prompts.class_names.a") == "as the atlas has it"
    assert domain.reason("prompts.class_names.b") is None
    parent = load_domain(tmp_path / "parent.yaml")
    assert [(choice.key, choice.because) for choice in parent.choices()] == [
        ("prompts.class_names", "as the atlas has it")
    ]
    # The saved copy must not give the second a reason it never had.
    again = load_domain(write(tmp_path, "saved.yaml", domain.to_yaml()))
    assert again.reason("prompts.class_names.a") == "as the atlas has it"
    assert again.reason("prompts.class_names.b") is None


def test_reason_of_what_is_not_set(tmp_path):
    with pytest.raises(ConfigurationError, match=r"does not set 'training.learning_rat': did you mean 'training.learn"):
        load_domain("medical").reason("training.learning_rat")


def test_a_domain_built_in_python():
    domain = DomainConfig(name="mine", training={"learning_rate": 1e-4, "lora_r": None}, images={"page": "mean"})
    assert domain.recipe_values() == {"learning_rate": 1e-4}
    assert {choice.key: choice.value for choice in domain.choices()} == {
        "images.page": "mean",
        "training.learning_rate": 1e-4,
    }
    with pytest.raises(ConfigurationError, match="did you mean 'learning_rate'"):
        DomainConfig(name="mine", training={"learning_rat": 1e-4})
    with pytest.raises(ConfigurationError, match="Unknown key 'trainig': did you mean 'training'"):
        DomainConfig(name="mine", trainig={})


@pytest.mark.parametrize("name", ["general", "industrial", "medical", "scientific"])
def test_the_saved_copy_says_the_same_and_needs_no_other_file(tmp_path, name):
    domain = load_domain(name)
    saved = write(tmp_path, "domain.yaml", domain.to_yaml())
    again = load_domain(saved)
    assert "extends" not in yaml.safe_load(saved.read_text(encoding="utf-8"))
    assert again.digest() == domain.digest()
    assert again.recipe_values() == domain.recipe_values()
    reasons = {choice.key: choice.because for choice in domain.choices()}
    assert all(again.reason(key) == because for key, because in reasons.items())
    assert again.texts.load() == domain.texts.load()
    assert not isinstance(again.texts.glossary, str)
    assert again.to_yaml() == domain.to_yaml()


def test_a_glossary_beside_the_domain_is_taken_in(tmp_path, monkeypatch):
    write(tmp_path, "words.yaml", "abbreviations:\n  BW: bitewing\n")
    path = write(tmp_path, "dental.yaml", "texts: {glossary: words.yaml, expand_abbreviations: true}\n")
    monkeypatch.chdir("/")
    domain = load_domain(path)
    (tmp_path / "words.yaml").unlink()
    assert domain.texts.load().abbreviations["BW"][0].expansion == "bitewing"
    saved = write(tmp_path, "domain.yaml", domain.to_yaml())
    assert load_domain(saved).digest() == domain.digest()


def test_a_class_hierarchy_is_one_value_and_is_taken_in(tmp_path, monkeypatch):
    tree = {"cell": {"blood": {"platelet": None, "red": None}, "bone": None}}
    write(tmp_path, "tree.json", json.dumps(tree))
    parent = write(tmp_path, "a.yaml", 'evaluation: {class_hierarchy: {value: tree.json, because: "as the atlas"}}\n')
    child = write(tmp_path, "b.yaml", "extends: a.yaml\nevaluation:\n  class_hierarchy: {cell: {skin: , nerve: }}\n")
    monkeypatch.chdir("/")
    domain = load_domain(parent)
    assert domain.recipe_values() == {"class_hierarchy": tree}  # null in a tree is a class, and takes nothing back
    assert domain.reason("evaluation.class_hierarchy") == "as the atlas"
    (tmp_path / "tree.json").unlink()
    again = load_domain(write(tmp_path, "saved.yaml", domain.to_yaml()))
    assert (again.recipe_values(), again.reason("evaluation.class_hierarchy")) == (
        {"class_hierarchy": tree},
        "as the atlas",
    )
    with pytest.raises(ConfigurationError, match=r"tree\.json does not exist \[.*a\.yaml line 1\]"):
        load_domain(child)
    write(tmp_path, "tree.json", json.dumps(tree))
    replaced = load_domain(child)
    assert replaced.recipe_values() == {"class_hierarchy": {"cell": {"skin": None, "nerve": None}}}
    assert [(c.key, c.because, c.place) for c in replaced.choices()] == [
        ("evaluation.class_hierarchy", None, f"{child} line 3")
    ]


def test_an_error_in_a_glossary_that_stands_in_the_domain(tmp_path):
    path = write(tmp_path, "a.yaml", "texts:\n  glossary:\n    abbreviations:\n      A: B\n      B: A\n")
    with pytest.raises(ConfigurationError, match=r"without end: A → B → A.*a\.yaml line 4"):
        load_domain(path)


def test_the_digest_is_of_what_changes_images_and_texts(tmp_path):
    plain = load_domain(write(tmp_path, "a.yaml", "images: {page: mean}\n"))
    same = load_domain(
        write(
            tmp_path,
            "b.yaml",
            'name: other\nimages: {page: {value: mean, because: "noise"}}\ntraining: {num_epochs: 3}\n',
        )
    )
    other = load_domain(write(tmp_path, "c.yaml", "images: {page: middle}\n"))
    assert plain.digest() == same.digest() != other.digest()
