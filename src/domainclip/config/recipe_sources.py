"""The order in which sources of a recipe override each other.

defaults < domain preset < recipe file < environment (``DOMAINCLIP_LEARNING_RATE=1e-5``) < command line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from domainclip.config.key_facts import key_meant
from domainclip.config.located_yaml import yaml_value
from domainclip.config.recipe import CLIPFinetuningConfig, checked_recipe
from domainclip.config.recipe_files import recipe_values
from domainclip.errors import ConfigurationError

ENVIRONMENT_PREFIX = "DOMAINCLIP_"
_NOT_KEYS = {f"DOMAINCLIP_{name}" for name in ("DATA", "CACHE", "API_KEYS", "STATE", "PARENT_FD")}
"""Where the tests find their data, and where images out of Hugging Face data sets are kept."""


def _holds_text(key: str) -> bool:
    field = CLIPFinetuningConfig.model_fields.get(key)
    return field is not None and field.annotation in (str, str | None)


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """``["learning_rate=1e-5", "lock_text=true"]`` as values; each value is read as YAML.

    Args:
        overrides: texts ``key=value``; each value is read as YAML.

    Returns:
        Values by key.

    Raises:
        ConfigurationError: a text is no such pair, or gives a key twice.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        key = key.strip().replace("-", "_")
        if not separator or not key:
            raise ConfigurationError(_not_a_pair(override))
        if key in values:  # a shell makes two words of key={a,b}
            raise ConfigurationError(
                f"{key} is given twice, the second time as {override!r}. A value with braces or brackets needs quotes "
                f"in a shell: '{key}={{…}}'"
            )
        try:
            values[key] = None if text.strip() == "None" else yaml_value(text)  # as Python writes it
        except (yaml.YAMLError, ValueError, RecursionError):
            values[key] = text
        if _holds_text(key) and not isinstance(values[key], str | None):
            values[key] = text  # "data_path=yes", "output_dir=2024-01-01" and "caption_col=a: b" are text there
    return values


def _not_a_pair(override: str) -> str:
    key = key_meant(CLIPFinetuningConfig.model_fields, override.strip(" :=").partition(":")[0], guess=False)
    if override[:1] in "–—−" and override.strip("-–—−"):
        hint = f": it begins with a long dash, as text programs make of two hyphens. Write --{override.strip('-–—−')}"
    elif key is not None:
        hint = f": write {key}=VALUE, without blanks around the sign"
    elif override.startswith("=") or override.endswith("="):
        hint = ": write key=value without blanks around the sign"
    else:
        hint = ". Data, model and output are given with --data, --model and --output"
    return f"{override!r:.200} is not key=value{hint}"


def environment_values(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Keys given as ``DOMAINCLIP_<KEY>``.

    Args:
        environment: variables by name; by default those of this process.

    Returns:
        Values by key.

    Raises:
        ConfigurationError: a variable names no key.
    """
    values: dict[str, Any] = {}
    for name, text in sorted((environment if environment is not None else os.environ).items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in _NOT_KEYS:
            continue
        key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
        if key not in CLIPFinetuningConfig.model_fields:
            guess = key_meant(CLIPFinetuningConfig.model_fields, key)
            hint = f": did you mean {ENVIRONMENT_PREFIX}{guess.upper()}?" if guess else ""
            raise ConfigurationError(f"Unknown key {key!r} in the environment variable {name}{hint}")
        values.update(parse_overrides([f"{key}={text}"]))
    return values


def load_recipe(
    name_or_path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> CLIPFinetuningConfig:
    """The recipe file, then the environment, then ``overrides``; what none of them names stays unset.

    Args:
        name_or_path: a shipped name or a file; None for no file.
        overrides: values that lie above all others.
        environment: as ``environment_values`` takes it.

    Returns:
        The checked recipe.

    Raises:
        ConfigurationError: one of the sources is wrong.
    """
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    source = "command line"
    if name_or_path is not None:
        values, lines, source = recipe_values(name_or_path)
        checked_recipe(values, lines, source)  # an error in the file is reported as the file's, not as an override's
    merged = {**values, **environment_values(environment), **(overrides or {})}
    return CLIPFinetuningConfig(**merged)
