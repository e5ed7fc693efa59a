"""YAML files: what a scalar means, and that nothing in one ends in a traceback."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from domainclip.config import load_recipe, parse_overrides
from domainclip.config.located_yaml import LocatedYaml, yaml_text
from domainclip.domains.domain import DomainConfig
from domainclip.domains.files import load_domain
from domainclip.domains.template import domain_template
from domainclip.errors import ConfigurationError

TEXTS = ["off", "no", "Yes", "on", "2026-11-21", "2026-13-45", "12:30", "010", "1_000", "0o17", "+", ".", "e5", "-e5"]


@pytest.mark.parametrize("text", TEXTS)
def test_words_times_and_dates_are_texts(text: str) -> None:
    assert LocatedYaml.parse(f"key: {text}", "file").values == {"key": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("0", 0),
        ("-7", -7),
        ("0x1F", 31),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        (".inf", math.inf),
    ],
)
def test_numbers_and_truth_values(text: str, value: object) -> None:
    found = LocatedYaml.parse(f"key: {text}", "file").values["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key: !!int abc", "file: not valid YAML"),
        ("key: " + "[" * 5000, "file: values lie too deep"),
        ("key: [1", "file line 1: not valid YAML"),
        ("a:\n  b: 1\n  b: 2", "file line 3: 'b' stands twice"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message.replace("(", r"\(")):
        LocatedYaml.parse(text, "file")


@pytest.mark.parametrize("text", [*TEXTS, "0.", "1e5", "true", "null", "0x1F", "<<", "~", ""])
def test_texts_stay_texts_for_readers_of_either_yaml(text: str) -> None:
    written = yaml_text({"key": text, "list": [text]})
    assert LocatedYaml.parse(written, "file").values == {"key": text, "list": [text]} == yaml.safe_load(written)


def test_choices_named_off_and_switches_in_words(tmp_path: Path) -> None:
    domain = tmp_path / "mine.yaml"
    domain.write_text("extends: medical\nimages: {crop_border: off}\nprompts: {class_names: {NO: no finding}}\n")
    found = load_domain(domain)
    assert found.images.crop_border == "off"
    assert found.prompts.class_names == {"NO": ["no finding"]}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lock_text: yes\nlearning_rate: 1e-5\noutput_dir: 2026-11-21\n")
    assert load_recipe(recipe).to_dict(only_set=True) == {
        "lock_text": True,
        "learning_rate": 1e-5,
        "output_dir": "2026-11-21",
    }
    assert parse_overrides(["lock_text=on", "data_path=1e5", "learning_rate=2026-13-45", "output_dir=!!int x"]) == {
        "lock_text": "on",
        "data_path": "1e5",
        "learning_rate": "2026-13-45",
        "output_dir": "!!int x",
    }


def test_every_mistake_has_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("images:\n  tile_size: 10\n  rotation_degrees: 500\n  percentiles: [1]\n")
    with pytest.raises(ConfigurationError) as error:
        load_domain(path)
    lines = str(error.value).split("\n")
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["2]", "3]", "4]"] or sorted(
        line.rsplit(" ", 1)[1] for line in lines
    ) == ["2]", "3]", "4]"]
    assert any("Percentiles has too few values" in line for line in lines)


def test_a_domain_changed_in_python_is_saved_as_it_is(tmp_path: Path) -> None:
    domain = load_domain("medical")
    domain.images.clahe_clip_limit = 0.01
    domain.training = {"learning_rate": 1e-6}
    assert {"images.clahe_clip_limit": 0.01, "training.learning_rate": 1e-6}.items() <= {
        choice.key: choice.value for choice in domain.choices()
    }.items()
    path = tmp_path / "domain.yaml"
    path.write_text(domain.to_yaml())
    again = load_domain(path)
    assert again.digest() == domain.digest() != load_domain("medical").digest()
    assert again.recipe_values() == domain.recipe_values()
    built = DomainConfig(name="x", images={"tile_size": 64})
    built.images.tile_size = 128
    assert yaml.safe_load(built.to_yaml())["images"] == {"tile_size": 128}


def test_a_template_opens_each_mapping_once_and_keeps_dots(tmp_path: Path) -> None:
    parent = tmp_path / "parent.yaml"
    names = {"Quercus sp. A": ["oak"], "on": ["switched on"], "plain": ["a", "b"]}
    content = {"prompts": {"class_names": names}, "training": {"learning_rate": 1e-5}}
    parent.write_text(yaml.safe_dump(content))
    text = domain_template("mine", load_domain(parent), str(parent))
    assert text.count("class_names:") == 1
    path = tmp_path / "mine.yaml"
    inherited = [line for line in text.splitlines() if line.endswith("# inherited") or "class_names:" in line]
    path.write_text("\n".join(["prompts:", *(line[1:] for line in inherited if "learning_rate" not in line)]))
    assert load_domain(path).prompts.class_names == names


def test_a_circle_of_domains_has_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nextends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigurationError, match=r"in a circle .*\[.*b\.yaml line 1\]$"):
        load_domain(tmp_path / "a.yaml")
