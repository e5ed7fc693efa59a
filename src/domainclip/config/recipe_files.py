"""Recipes on disk and the order in which sources override each other.

defaults < domain preset < recipe file < environment (``DOMAINCLIP_LEARNING_RATE=1e-5``) < command line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from domainclip.config.located_yaml import LocatedYaml, read_yaml_text, yaml_value
from domainclip.config.recipe import CLIPFinetuningConfig
from domainclip.domains.files import is_domain_path, load_domain
from domainclip.errors import ConfigurationError
from domainclip.registry import nearest

_SHIPPED = resources.files("domainclip.config") / "recipes"
ENVIRONMENT_PREFIX = "DOMAINCLIP_"
_NOT_KEYS = {"DOMAINCLIP_DATA", "DOMAINCLIP_CACHE"}
"""Where the tests find their data, and where images out of Hugging Face data sets are kept."""


def shipped_recipes() -> list[str]:
    """Names of the recipes inside the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _SHIPPED.iterdir() if entry.name.endswith(".yaml"))


def parse_recipe(text: str, source: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Values and line numbers (from 1) of a YAML recipe. Raises ``ConfigurationError`` naming file and line."""
    found = LocatedYaml.parse(text, source)
    return found.mapping("a recipe"), {str(path[0]): line for path, line in found.lines.items() if len(path) == 1}


def _holds_text(key: str) -> bool:
    field = CLIPFinetuningConfig.model_fields.get(key)
    return field is not None and field.annotation in (str, str | None)


def recipe_values(name_or_path: str | Path) -> tuple[dict[str, Any], dict[str, int], str]:
    """Values, line numbers and a name for messages, of a shipped recipe or a recipe file."""
    name = str(name_or_path)
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


def _checked(values: Mapping[str, Any], lines: Mapping[str, int], source: str) -> CLIPFinetuningConfig:
    try:
        return CLIPFinetuningConfig(**values)
    except ConfigurationError as error:
        keys = [key for key in getattr(error, "keys", []) if key in lines]
        where = f" line {lines[keys[0]]}" if keys else ""
        raise ConfigurationError(f"{error} [{source}{where}]") from None


def read_recipe(name_or_path: str | Path) -> CLIPFinetuningConfig:
    """A shipped recipe by name, or a recipe file by path."""
    return _checked(*recipe_values(name_or_path))


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """``["learning_rate=1e-5", "lock_text=true"]`` as values; each value is read as YAML."""
    values: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        key = key.strip().replace("-", "_")
        if not separator or not key:
            raise ConfigurationError(f"{override!r} is not key=value")
        if key in values:  # a shell makes two words of key={a,b}
            raise ConfigurationError(
                f"{key} is given twice, the second time as {override!r}. A value with braces or brackets needs quotes "
                f"in a shell: '{key}={{…}}'"
            )
        try:
            values[key] = yaml_value(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            values[key] = text
        if _holds_text(key) and not isinstance(values[key], str | None):
            values[key] = text  # "data_path=yes", "output_dir=2024-01-01" and "caption_col=a: b" are text there
    return values


def environment_values(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Keys given as ``DOMAINCLIP_<KEY>``. Raises ``ConfigurationError`` for an unknown one."""
    values: dict[str, Any] = {}
    for name, text in sorted((environment if environment is not None else os.environ).items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in _NOT_KEYS:
            continue
        key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
        if key not in CLIPFinetuningConfig.model_fields:
            guess = nearest(key, CLIPFinetuningConfig.model_fields)
            hint = f": did you mean {ENVIRONMENT_PREFIX}{guess.upper()}?" if guess else ""
            raise ConfigurationError(f"Unknown key {key!r} in the environment variable {name}{hint}")
        values.update(parse_overrides([f"{key}={text}"]))
    return values


def load_recipe(
    name_or_path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> CLIPFinetuningConfig:
    """The recipe file, then the environment, then ``overrides``; what none of them names stays unset."""
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    source = "command line"
    if name_or_path is not None:
        values, lines, source = recipe_values(name_or_path)
        _checked(values, lines, source)  # an error in the file is reported as the file's, not as an override's
    merged = {**values, **environment_values(environment), **(overrides or {})}
    return CLIPFinetuningConfig(**merged)


def domain_preset(domain: str) -> dict[str, Any]:
    """The recipe keys that a domain (a shipped name or a path) lays under what the user sets."""
    return load_domain(domain).recipe_values()
