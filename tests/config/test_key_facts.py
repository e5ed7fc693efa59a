"""What is known about a key stands where it is declared, and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.base import Settings
from domainclip.config.key_facts import KeyFacts, Search, Section, facts_by_key, facts_of, key
from domainclip.domains.domain import PREPROCESSING, RECIPE_SECTIONS, recipe_sections
from domainclip.errors import ConfigurationError
from domainclip.training.identity import NEUTRAL_KEYS
from domainclip.tune import Space

SOURCE = Path(__file__).parents[2] / "src/domainclip"
KEYS = list(CLIPFinetuningConfig.model_fields)


@pytest.mark.parametrize("name", KEYS)
def test_every_key_states_its_facts(name: str) -> None:
    field, facts = CLIPFinetuningConfig.model_fields[name], facts_of(CLIPFinetuningConfig, name)
    assert facts.section in get_args(Section)
    assert field.description
    assert sum(isinstance(each, KeyFacts) for each in field.metadata) == 1
    # A domain holds what belongs to no single run; its own sections stand for the rest.
    assert (name in recipe_sections()) == (facts.section in RECIPE_SECTIONS and not facts.one_run)
    assert facts.one_run or facts.section in (*RECIPE_SECTIONS, *PREPROCESSING)
    if isinstance(facts.search, Search):
        assert facts.changes_weights, "a search over it would learn nothing"
        given, low, high = CLIPFinetuningConfig(), facts.search.low, facts.search.high
        assert (low is None) == (high is None)
        if low is not None and high is not None and not facts.search.relative:
            assert low < high
            given.updated(**{name: low})
            given.updated(**{name: high})


def test_a_key_without_facts_is_noticed() -> None:
    class Mine(Settings):
        stated: int = key(1, section="run", description="…")
        bare: int = 1

    assert facts_of(Mine, "stated").section == "run"
    with pytest.raises(LookupError, match=r"Mine\.bare is declared without its facts"):
        dict(facts_by_key(Mine))


def test_no_other_module_lists_keys() -> None:
    """Three names of keys side by side are a list that somebody has to keep. Mappings give keys their values, and are
    none."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        if (SOURCE / "config") in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Set | ast.List | ast.Tuple):
                named = [each.value for each in node.elts if isinstance(each, ast.Constant) and each.value in KEYS]
                if len(named) >= 3:
                    found[f"{path.relative_to(SOURCE)}:{node.lineno}"] = named
    assert found == {}


def test_a_search_offers_no_key_that_learns_nothing() -> None:
    for name, facts in facts_by_key(CLIPFinetuningConfig):
        if isinstance(facts.search, str):
            with pytest.raises(ConfigurationError, match=f"{name} cannot be searched: "):
                Space.from_dict({name: [1, 2]})
        else:
            assert name not in NEUTRAL_KEYS
