"""``DomainConfig``: what is particular to a domain, each choice with its reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from domainclip.config.base import Settings
from domainclip.config.domain_name import Domain
from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.config.key_facts import facts_by_key, facts_of
from domainclip.config.located_yaml import KeyPath, yaml_text
from domainclip.config.recipe import CLIPFinetuningConfig
from domainclip.config.text_preprocessing import PromptPack, TextPreprocessing
from domainclip.domains.layers import WHOLE_VALUES, DomainLayer
from domainclip.errors import ConfigurationError
from domainclip.registry import nearest

PREPROCESSING = ("images", "texts", "prompts")
"""Sections with settings of their own."""

RECIPE_SECTIONS = ("augmentation", "loss", "training", "evaluation")
"""Sections of recipe keys: they lie under what the user sets."""

_SECTIONS = (*PREPROCESSING, *RECIPE_SECTIONS)


@dataclass(frozen=True)
class Choice:
    """One value a domain sets: the keys that lead to it, why, and where it stands."""

    path: KeyPath
    value: Any
    because: str | None
    place: str | None

    @property
    def key(self) -> str:
        """The path with dots, for people: a class's name may have dots of its own."""
        return ".".join(map(str, self.path))

    def to_dict(self) -> dict[str, Any]:
        """The choice as ``domainclip domain show --json`` prints it.

        Returns:
            Plain values by name.
        """
        return {"key": self.key, "value": self.value, "because": self.because, "place": self.place}


def recipe_sections() -> dict[str, str]:
    """Every recipe key that a domain may set, with its section.

    Returns:
        Sections by key.
    """
    return {
        name: facts.section
        for name, facts in facts_by_key(CLIPFinetuningConfig)
        if facts.section in RECIPE_SECTIONS and not facts.one_run
    }


class DomainConfig(Settings):
    """A domain, with everything it inherits. ``domains.load_domain`` reads one from YAML.

    Raises ``ConfigurationError`` for an unknown key (naming the nearest) and for a bad value.
    """

    name: str = Field(min_length=1, description="What the domain is called.")
    description: str = Field("", description="One line about it.")
    family: Domain = Field(
        "general", description="Shipped domain whose objective (loss_type domain_specific) and metrics hold."
    )
    extends: list[str] = Field([], description="What it was made from, nearest first; all of that is in it already.")
    images: ImagePreprocessing = Field(default_factory=ImagePreprocessing, description="Image preprocessing.")
    texts: TextPreprocessing = Field(default_factory=TextPreprocessing, description="Caption preprocessing.")
    prompts: PromptPack = Field(default_factory=PromptPack, description="Sentences that describe a class.")
    augmentation: dict[str, Any] = Field({}, description="Recipe keys: what training shows in place of an image.")
    loss: dict[str, Any] = Field({}, description="Recipe keys: the objective and its temperature.")
    training: dict[str, Any] = Field({}, description="Recipe keys: rates, length, what is trained.")
    evaluation: dict[str, Any] = Field({}, description="Recipe keys: in which terms results are given.")

    _layer: DomainLayer = PrivateAttr(default_factory=DomainLayer)

    @field_validator(*RECIPE_SECTIONS)
    @classmethod
    def _null_is_unset(cls, section: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in section.items() if value is not None}

    @model_validator(mode="after")
    def _recipe_keys_are_in_place(self) -> Self:
        for section in RECIPE_SECTIONS:
            for key in getattr(self, section):
                check_key(section, key)
        self._checked_recipe_values()
        return self

    def _values(self, section: str) -> dict[str, Any]:
        """What a section sets, as YAML has it, in the file's order. Reasons and places alone stand in ``_layer``."""
        if section in PREPROCESSING:
            values = getattr(self, section).model_dump(mode="json", exclude_unset=True)
        else:
            plain = self._checked_recipe_values()
            values = {key: plain[key] for key in getattr(self, section)}
        order = [key for key in self._layer.values.get(section, {}) if key in values]
        return {key: values[key] for key in (*order, *(key for key in values if key not in order))}

    def _checked_recipe_values(self) -> dict[str, Any]:
        given = {key: value for section in RECIPE_SECTIONS for key, value in getattr(self, section).items()}
        # The data are a run's: what a domain says of reference sets holds where a run has some.
        checked = CLIPFinetuningConfig(retention_data=None, **given).to_dict(only_set=True)
        return {key: checked[key] for key in given if key in checked}

    def recipe_values(self) -> dict[str, Any]:
        """The recipe keys that lie under what the user sets.

        Returns:
            Plain values by key.
        """
        return self._checked_recipe_values()

    def recipe_reasons(self) -> dict[str, str | None]:
        """Why each key of ``recipe_values`` is what it is.

        Returns:
            Reasons by key; None where nobody gave one.
        """
        return {key: self._reason((section, key)) for section in RECIPE_SECTIONS for key in getattr(self, section)}

    def reason(self, path: str) -> str | None:
        """Why a value is what it is. A reason given for a whole mapping holds for its keys.

        Args:
            path: of the value, with dots: ``training.learning_rate``.

        Returns:
            The reason; None where nobody gave one.

        Raises:
            ConfigurationError: the domain does not set this.
        """
        parts = tuple(path.split("."))
        if parts[0] not in _SECTIONS or _value_at(self._values(parts[0]), parts[1:]) is _ABSENT:
            known = [choice.key for choice in self.choices()]
            guess = nearest(path, known)
            hint = f"did you mean {guess!r}?" if guess else f"it sets {', '.join(known) or 'nothing'}"
            raise ConfigurationError(f"The domain {self.name!r} does not set {path!r}: {hint}")
        return self._reason(parts)

    def _reason(self, path: KeyPath) -> str | None:
        reasons = self._layer.reasons
        return next((reasons[path[:n]] for n in range(len(path), 0, -1) if path[:n] in reasons), None)

    def choices(self) -> list[Choice]:
        """Everything the domain sets, in its sections' order: one entry a value, or a mapping given with one reason.

        Returns:
            The choices.
        """
        return [
            Choice(path, value, self._reason(path), self._layer.place(path))
            for section in _SECTIONS
            for path, value in _leaves(self._values(section), (section,), self._layer.reasons)
        ]

    def self_contained(self) -> DomainConfig:
        """A copy that needs no other file: the glossary's content is in it.

        Returns:
            The copy.

        Raises:
            ConfigurationError: the glossary is missing or wrong.
        """
        copy = self.model_copy(deep=True)
        copy.texts = self.texts.self_contained()
        return copy

    def with_steps(self, images: ImagePreprocessing | None, texts: TextPreprocessing | None) -> DomainConfig:
        """A copy with a recipe's own preprocessing in place of a section: what a model trained by it must be given.

        Args:
            images: the recipe's steps for images, or None.
            texts: the recipe's steps for texts, or None.

        Returns:
            The copy.

        Raises:
            ConfigurationError: the glossary of the recipe's steps is missing or wrong.
        """
        copy = self.model_copy(deep=True)
        for section, given in (("images", images), ("texts", texts and texts.self_contained())):
            if given is not None:
                setattr(copy, section, given)
                copy._layer = copy._layer.under(DomainLayer({section: None}))
                copy._layer.reasons |= {(section, key): "Set in the recipe." for key in given.model_fields_set}
        return copy

    def to_yaml(self) -> str:
        """A file that says the same by itself, without ``extends`` or another file, every reason in it.

        Returns:
            The text of the file.
        """
        whole = self.self_contained()
        content = {"name": self.name, "description": self.description, "family": self.family}
        for section in _SECTIONS:
            if values := whole._values(section):
                content[section] = whole._with_reasons(values, (section,))
        made_from = f" Made from: {', '.join(self.extends)}." if self.extends else ""
        head = " ".join(f"# The domain {self.name}, complete in this file.{made_from}".split())
        return head + "\n" + yaml_text(content, width=110)

    def _with_reasons(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, Mapping) and not _is_one_choice(path, self._layer.reasons):
            return {key: self._with_reasons(inner, (*path, key)) for key, inner in value.items()}
        reason = self._reason(path)
        return value if reason is None else {"value": value, "because": reason}

    def digest(self) -> str:
        """SHA-256 of what preprocessing does to images and texts (with the glossary's content), of the prompts and of
        the family. Names and reasons are no part of it, nor the recipe keys, which a resolved recipe holds itself.

        Returns:
            The digest in hexadecimal digits.
        """
        content = self.self_contained().model_dump(mode="json", include={"family", *PREPROCESSING})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_key(section: str, key: str) -> None:
    """Make sure that a recipe key may stand in a section of a domain.

    Args:
        section: of a domain's file.
        key: what stands in it.

    Raises:
        ConfigurationError: the key belongs elsewhere, or there is none of this name.
    """
    homes = recipe_sections()
    if homes.get(key) == section:
        return
    if key in homes:
        problem = f"{key!r} belongs in the section {homes[key]!r}: move it there"
    elif key in CLIPFinetuningConfig.model_fields and (own := _preprocessing_of(key)):
        problem = f"{key!r} is written as {own}"
    elif key in CLIPFinetuningConfig.model_fields:
        problem = f"{key!r} belongs to a run, its data or its machine, not to a domain: set it in the recipe"
    else:
        guess = nearest(key, [known for known, home in homes.items() if home == section]) or nearest(key, homes)
        hint = f": did you mean {guess!r}?" if guess else ". `domainclip config show` lists the known ones"
        problem = f"Unknown key {key!r}{hint}"
    raise ConfigurationError(f"{section}: {problem}")


def _preprocessing_of(key: str) -> str | None:
    """Where a domain says what this recipe key says of a single run; None for keys that have no such place."""
    section = facts_of(CLIPFinetuningConfig, key).section
    if section not in PREPROCESSING:
        return None
    inner, held = key.partition("_")[2], DomainConfig.model_fields[section].annotation
    whole = f"the section {section!r}"
    return f"{inner!r} in {whole}" if inner in getattr(held, "model_fields", {}) else whole


_ABSENT = object()


def _value_at(values: Any, path: KeyPath) -> Any:
    for key in path:
        if not isinstance(values, Mapping) or key not in values:
            return _ABSENT
        values = values[key]
    return values


def _is_one_choice(path: KeyPath, reasons: Mapping[KeyPath, Any]) -> bool:
    """Whether a mapping was given whole with a reason, and no key in it has another (or none)."""
    if path in WHOLE_VALUES:
        return True
    inside = any(len(other) > len(path) and other[: len(path)] == path for other in reasons)
    return len(path) > 1 and reasons.get(path) is not None and not inside


def _leaves(value: Any, path: KeyPath, reasons: Mapping[KeyPath, Any]) -> Iterator[tuple[KeyPath, Any]]:
    if not isinstance(value, Mapping) or _is_one_choice(path, reasons):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, (*path, key), reasons)
