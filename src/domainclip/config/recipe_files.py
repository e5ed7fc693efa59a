"""Recipes on disk: the shipped ones by name, a user's own by path."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from domainclip.config.domain_name import is_domain_path
from domainclip.config.located_yaml import LocatedYaml, read_yaml_text
from domainclip.errors import ConfigurationError
from domainclip.registry import nearest

_SHIPPED = resources.files("domainclip.config") / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the recipes inside the package.

    Returns:
        Their names in order.
    """
    return sorted(entry.name.removesuffix(".yaml") for entry in _SHIPPED.iterdir() if entry.name.endswith(".yaml"))


def parse_recipe(text: str, source: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Read the text of a YAML recipe.

    Args:
        text: of the file.
        source: what messages call it.

    Returns:
        Values by key, and the line of each, from 1.

    Raises:
        ConfigurationError: it is no mapping or no YAML; the message has file and line.
    """
    found = LocatedYaml.parse(text, source)
    return found.mapping("a recipe"), {str(path[0]): line for path, line in found.lines.items() if len(path) == 1}


def recipe_values(name_or_path: str | Path) -> tuple[dict[str, Any], dict[str, int], str]:
    """Values, line numbers and a name for messages, of a shipped recipe or a recipe file.

    Args:
        name_or_path: a shipped name, or the path of a file.

    Returns:
        The values by key, the line of each, and the name.

    Raises:
        ConfigurationError: there is no such recipe, or its file is wrong.
    """
    name = os.path.expanduser(str(name_or_path))
    if name in shipped_recipes():
        values, lines = parse_recipe((_SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"), f"recipe {name}")
        return values, lines, f"recipe {name}"
    if not Path(name).exists() and not name.endswith((".yaml", ".yml")) and "/" not in name:
        guess = nearest(name, shipped_recipes())
        hint = f"Did you mean {guess!r}? " if guess else ""
        raise ConfigurationError(
            f"Unknown recipe {name!r}. {hint}Shipped: {', '.join(shipped_recipes())}; or give the path of a YAML file"
        )
    values, lines = parse_recipe(read_yaml_text(Path(name), "Recipe"), name)
    domain = values.get("domain")
    if isinstance(domain, str) and is_domain_path(domain) and (beside := Path(name).parent / domain).is_file():
        values["domain"] = str(beside)  # so that a run's folder can be moved with the domain in it
    return values, lines, name
