"""The search space: which recipe keys are varied, and between which values. Reads no model and no data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any, get_args

from domainclip.config import CLIPFinetuningConfig, parse_overrides
from domainclip.config.key_facts import facts_of
from domainclip.config.located_yaml import read_yaml_text
from domainclip.config.recipe_files import parse_recipe
from domainclip.errors import ConfigurationError
from domainclip.registry import nearest

Value = bool | int | float | str | None


@dataclass(frozen=True)
class Dimension:
    """One key of the search: a range ``low``…``high`` (both included), or ``choices``."""

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] | None = None

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that have to be valid for all to be."""
        return self.choices if self.choices is not None else (self.low, self.high)

    def contains(self, value: Any) -> bool:
        """Whether a value lies in the range or is among the choices.

        Args:
            value: of the key.

        Returns:
            True where it does.
        """
        if self.choices is not None:
            return value in self.choices
        return (
            isinstance(value, int | float) and self.low <= value <= self.high and (not self.integer or value % 1 == 0)
        )

    def label(self, value: Any) -> Value:
        """``value`` as the study stores it: lists and dicts are not among what it can hold.

        Args:
            value: of the key.

        Returns:
            A plain value.
        """
        return json.dumps(value) if isinstance(value, list | dict) else value

    def suggest(self, trial: Any) -> Any:
        """This key's value in an Optuna trial.

        Args:
            trial: one of Optuna's.

        Returns:
            The value.
        """
        if self.choices is None:
            if self.integer:
                return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log)
            return trial.suggest_float(self.key, self.low, self.high, log=self.log)
        labels = [self.label(choice) for choice in self.choices]
        return self.choices[labels.index(trial.suggest_categorical(self.key, labels))]

    def spec(self) -> str | list[Any]:
        """As a space file writes it.

        Returns:
            A text for a range, a list of choices otherwise.
        """
        if self.choices is not None:
            return list(self.choices)
        low, high = (int(end) if self.integer else end for end in (self.low, self.high))
        return f"{low!r}..{high!r}{':log' if self.log else ''}"

    def __str__(self) -> str:
        spec = self.spec()
        return f"{self.key}={spec if isinstance(spec, str) else ','.join(str(self.label(choice)) for choice in spec)}"


@dataclass(frozen=True)
class Space:
    """The dimensions of a search, in the order they were given."""

    dimensions: tuple[Dimension, ...]

    def __contains__(self, key: str) -> bool:
        return any(dimension.key == key for dimension in self.dimensions)

    def __getitem__(self, key: str) -> Dimension:
        return next(dimension for dimension in self.dimensions if dimension.key == key)

    def to_dict(self) -> dict[str, str | list[Any]]:
        """The space as a file holds it.

        Returns:
            Specifications by key.
        """
        return {dimension.key: dimension.spec() for dimension in self.dimensions}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "search space") -> Space:
        """From ``key: "low..high"`` (``:log``) and ``key: [a, b, c]``.

        Args:
            values: specifications by key.
            source: what messages call it.

        Returns:
            The space.

        Raises:
            ConfigurationError: a key is unknown or cannot be searched, or its range is none.
        """
        return cls(tuple(_dimension(key, value, source) for key, value in values.items()))

    @classmethod
    def from_file(cls, path: Path) -> Space:
        """Read a YAML file of such lines.

        Args:
            path: of the file.

        Returns:
            The space.

        Raises:
            ConfigurationError: it cannot be read or is wrong; the message has file and line.
        """
        values, lines = parse_recipe(read_yaml_text(Path(path), "The search space"), str(path))
        if not values:
            raise ConfigurationError(f"{path} names no key to search. A line is: learning_rate: 1e-6..1e-4:log")
        return cls(tuple(_dimension(key, value, f"{path} line {lines[key]}") for key, value in values.items()))

    @classmethod
    def from_options(cls, options: Iterable[str]) -> Space:
        """From the command line's ``key=low..high`` (``:log``) and ``key=a,b,c``.

        Args:
            options: of the command line.

        Returns:
            The space.

        Raises:
            ConfigurationError: an option is none, or names a key twice.
        """
        found: dict[str, Dimension] = {}
        for option in options:
            key, separator, text = option.partition("=")
            key = key.strip().replace("-", "_")
            if not separator or not key:
                raise ConfigurationError(f"--search {option!r} is not key=low..high or key=a,b,c")
            if key in found:
                raise ConfigurationError(f"--search names {key!r} twice: give one range")
            found[key] = _dimension(key, text, f"--search {option}")
        return cls(tuple(found.values()))

    def merged(self, other: Space) -> Space:
        """This space, with ``other``'s dimensions in place of those of the same key.

        Args:
            other: whose dimensions win.

        Returns:
            A new space.
        """
        return Space((*(d for d in self.dimensions if d.key not in other), *other.dimensions))

    def check(self, config: CLIPFinetuningConfig) -> None:
        """Make sure that the space holds recipes only.

        Args:
            config: the recipe as the user gave it.

        Raises:
            ConfigurationError: an end of a range, a choice, or two of them together, is no recipe.
        """
        for dimension in self.dimensions:
            for end in dimension.ends:
                _check_values(config, {dimension.key: end})
        for one, other in combinations(self.dimensions, 2):
            for a, b in product(one.ends, other.ends):
                _check_values(config, {one.key: a, other.key: b})


def _check_values(config: CLIPFinetuningConfig, values: dict[str, Any]) -> None:
    try:
        config.updated(**values)
    except ConfigurationError as error:
        named = " with ".join(f"{key}={value}" for key, value in values.items())
        raise ConfigurationError(f"The search space reaches {named}, which is no recipe: {error}") from None


def _dimension(key: str, value: Any, source: str) -> Dimension:
    field = CLIPFinetuningConfig.model_fields.get(key)
    if field is None:
        guess = nearest(key, CLIPFinetuningConfig.model_fields)
        hint = f": did you mean {guess!r}?" if guess else ". `domainclip config show` lists the known ones"
        raise ConfigurationError(f"Unknown key {key!r}{hint} [{source}]")
    search = facts_of(CLIPFinetuningConfig, key).search
    if isinstance(search, str):
        raise ConfigurationError(f"{key} cannot be searched: {search} [{source}]")
    kinds = set(get_args(field.annotation) or (field.annotation,))
    numeric = bool(kinds & {int, float})
    if isinstance(value, str):
        if numeric and ".." in value:
            return _range(key, value, float not in kinds, source)
        value = [parse_overrides([f"{key}={part}"])[key] for part in _parts(value)]
    if not isinstance(value, list):
        value = [value]
    value = [_number(choice) if numeric else choice for choice in value]
    labels = [json.dumps(choice) for choice in value]
    if len(set(labels)) < len(labels):
        raise ConfigurationError(f"{key} names a choice twice: {', '.join(labels)} [{source}]")
    if len(value) < 2:
        raise ConfigurationError(
            f"{key} has nothing to choose between ({', '.join(labels)}): give {key}=low..high or {key}=a,b, or fix "
            f"it with {key}=VALUE [{source}]"
        )
    return Dimension(key, choices=tuple(value))


def _range(key: str, text: str, integer: bool, source: str) -> Dimension:
    span, _, suffix = text.partition(":")
    low_text, _, high_text = span.partition("..")
    try:
        low, high = float(low_text), float(high_text)
    except ValueError:
        raise ConfigurationError(f"{key}={text} is not a range such as 1e-6..1e-4 [{source}]") from None
    if suffix.strip() not in ("", "log"):
        raise ConfigurationError(f"{key}={text}: the only scale is :log, not :{suffix} [{source}]")
    log = suffix.strip() == "log"
    if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        raise ConfigurationError(f"{key}={text}: the lower end must be below the upper one [{source}]")
    if log and low <= 0:
        raise ConfigurationError(f"{key}={text}: a logarithmic range must begin above 0 [{source}]")
    if integer and (low % 1 or high % 1):
        raise ConfigurationError(f"{key}={text}: {key} is a whole number [{source}]")
    return Dimension(key, low, high, log, integer)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-5 (no point) as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _parts(text: str) -> list[str]:
    """Split at the commas that stand outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
