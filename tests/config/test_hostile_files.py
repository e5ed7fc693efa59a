"""Files that a command is given and that are no configuration at all: an error in a sentence, in little memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from domainclip.config import CLIPFinetuningConfig, parse_overrides
from domainclip.config.glossary import load_glossary
from domainclip.config.located_yaml import LocatedYaml
from domainclip.config.recipe import CLIPFinetuningConfig as Recipe
from domainclip.domains import load_domain
from domainclip.errors import ConfigurationError
from domainclip.evaluation.class_hierarchy import ClassHierarchy
from domainclip.tune.space import Space

READERS: dict[str, Callable[[Path], object]] = {
    "recipe": Recipe.from_yaml,
    "domain": load_domain,
    "glossary": load_glossary,
    "search space": Space.from_file,
    "class hierarchy": ClassHierarchy.from_file,
}


def multiplied(first: str, link: str) -> str:
    """Nine lines of aliases that stand for a thousand million values."""
    lines = [f"a: &a {first}"]
    for name, before in zip("bcdefghi", "abcdefgh", strict=True):
        lines.append(f"{name}: &{name} {link.format(', '.join([f'*{before}'] * 10))}")
    return "\n".join(lines)


TEXTS = {
    "aliases that multiply": multiplied("[x, x, x]", "[{}]"),
    "merges that multiply": multiplied("{k: 1, m: 2}", "{{<<: [{}]}}"),
    "lists in lists": "a: " + "[" * 20_000 + "]" * 20_000,
    "a number of 6,000 digits": "seed: " + "9" * 6_000,
    "a NUL": "a: b\0c",
    "no UTF-8": "a: caf\xe9",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", TEXTS)
def test_texts_are_refused_in_a_sentence(reader, what, tmp_path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_bytes(TEXTS[what].encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"hostile\.yaml") as refusal:
        READERS[reader](path)
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "2 GB", "circle of links"])
def test_what_is_no_file_is_not_read(reader, kind, tmp_path) -> None:
    path = tmp_path / "hostile.yaml"
    if kind == "pipe":
        os.mkfifo(path)  # nobody writes to it: reading would never end
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "2 GB":
        with open(path, "wb") as handle:
            handle.truncate(2_000_000_000)
    else:
        path.symlink_to(path)
    with pytest.raises(ConfigurationError, match=r"hostile\.yaml"):
        READERS[reader](path)


def test_json_that_is_deep_or_has_huge_numbers(tmp_path) -> None:
    for text in ('{"a":' * 200_000 + "{}" + "}" * 200_000, '{"a":' * 900 + "{}" + "}" * 900, f'{{"a": {"9" * 6000}}}'):
        (tmp_path / "tree.json").write_text(text)
        with pytest.raises(ConfigurationError, match=r"tree\.json"):
            ClassHierarchy.from_file(tmp_path / "tree.json")


def test_a_few_aliases_are_what_they_stand_for() -> None:
    found = LocatedYaml.parse("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: &m {k: 1}, d: 2}", "text")
    assert found.values == {"a": [1, 2], "b": [[1, 2], [1, 2]], "c": {"k": 1, "d": 2}}


def test_aliases_on_the_command_line_multiply_nothing() -> None:
    text = "{" + ", ".join(multiplied("[x]", "[{}]").split("\n")) + "}"
    assert parse_overrides([f"plugins={text}"]) == {"plugins": text}
    assert parse_overrides(["plugins=&a [*a]"]) == {"plugins": "&a [*a]"}
    assert parse_overrides(["early_stopping_patience=", "evaluators=[a, b]"]) == {
        "early_stopping_patience": None,
        "evaluators": ["a", "b"],
    }


@pytest.mark.parametrize("value", ["1e999", "-1e999", ".nan", "9" * 6000, "0x" + "f" * 100_000, "[" * 5000])
@pytest.mark.parametrize("key", ["learning_rate", "batch_size", "seed", "warmup_steps"])
def test_numbers_beyond_all_measure(key, value) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        CLIPFinetuningConfig(**parse_overrides([f"{key}={value}"]))
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("key", ["data_path", "model_name", "output_dir", "domain", "caption_col", "primary_metric"])
def test_a_name_with_a_nul_is_refused_with_its_line(key, tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f'seed: 1\n{key}: "a\\0b"\n')
    with pytest.raises(ConfigurationError, match=r"NUL.*mine\.yaml line 2"):
        CLIPFinetuningConfig.from_yaml(path)
