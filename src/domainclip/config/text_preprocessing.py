"""How a domain treats its captions, and the sentences its classes are described by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from domainclip.config.base import Settings
from domainclip.config.glossary import Glossary, load_glossary


class TextPreprocessing(Settings):
    """What happens to a caption or prompt between the table and the tokenizer. Every step is off by default.

    All but the last two keys are without chance, and hold in training, evaluation and inference alike; the last two
    make other views of the training captions.
    """

    normalise: bool = Field(
        False, description="One spelling for quotation marks, dashes, ligatures, full-width and invisible characters."
    )
    normalise_units: bool = Field(
        False, description="One spelling for numbers with units: '5mm' is '5 mm', '3 um' is '3 µm', '20 ml' is '20 mL'."
    )
    lowercase: bool = Field(False, description="Lower-case captions (most tokenizers of CLIP models do so anyway).")
    glossary: str | Glossary | None = Field(
        None, description="A shipped glossary (medical, industrial, scientific), a YAML file's path, or its content."
    )
    expand_abbreviations: bool = Field(
        False, description="Write out the glossary's abbreviations: 'CXR' is 'chest X-ray'."
    )
    truncation: Literal["sentences", "tokens"] = Field(
        "tokens",
        description="What is left of a caption above the token limit: whole sentences, or tokens up to the limit.",
    )
    synonym_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Training: fraction of the glossary's terms that are shown as one of their synonyms.",
    )
    section_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Training: chance of each sentence of a long caption to be left out; never one with a negation.",
    )

    @model_validator(mode="after")
    def _glossary_is_there(self) -> Self:
        if self.glossary is None:
            for key in ("expand_abbreviations", "synonym_fraction"):
                if getattr(self, key):
                    raise ValueError(
                        f"{key} reads a glossary: name one (glossary=medical, or a YAML file), or turn {key} off"
                    )
        return self

    def load(self, folder: Path | None = None) -> Glossary | None:
        """The glossary, checked; a relative path starts at ``folder`` (the file that named it) if it is there.

        Args:
            folder: of the file that named the glossary.

        Returns:
            The checked glossary; None where none is named.

        Raises:
            ConfigurationError: it is missing or wrong.
        """
        return load_glossary(self.glossary, folder) if isinstance(self.glossary, str) else self.glossary

    def self_contained(self, folder: Path | None = None) -> TextPreprocessing:
        """A copy that holds its glossary's content and needs no other file.

        Args:
            folder: of the file that named the glossary.

        Returns:
            The copy.

        Raises:
            ConfigurationError: the glossary is missing or wrong.
        """
        return self if self.glossary is None else self.model_copy(update={"glossary": self.load(folder)})


class PromptPack(Settings):
    """Sentences that describe a class. Empty lists mean: what the recipe says, or the general pack."""

    templates: list[str] = Field(
        default_factory=list, description="Sentences a class is described by; {} stands for its name."
    )
    class_names: dict[str, list[str]] = Field(
        default_factory=dict,
        description="Names that describe a class in place of its label, averaged over; the label too if listed.",
    )
    presence_templates: list[tuple[str, str]] = Field(
        default_factory=list, description="Pairs for a finding's presence and absence, such as ['{}', 'no {}']."
    )

    @field_validator("templates")
    @classmethod
    def _templates_take_a_name(cls, templates: list[str]) -> list[str]:
        for template in templates:
            _check_template(template)
        return templates

    @field_validator("presence_templates")
    @classmethod
    def _pairs_differ(cls, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        for present, absent in pairs:
            _check_template(present)
            _check_template(absent)
            if present.split() == absent.split():
                raise ValueError(f"The pair {present!r} / {absent!r} says the same twice: the second means absence")
        return pairs

    @field_validator("class_names", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, names: Any) -> Any:
        if not isinstance(names, Mapping):
            return names
        return {label: [given] if isinstance(given, str) else given for label, given in names.items()}

    @field_validator("class_names")
    @classmethod
    def _names_are_names(cls, names: dict[str, list[str]]) -> dict[str, list[str]]:
        keys: dict[str, str] = {}
        for label, given in names.items():
            if not given or not all(name.strip() for name in given):
                raise ValueError(f"The class {label!r} has an empty name: give it at least one, and no empty ones")
            other = keys.setdefault(label_key(label), label)
            if other != label:
                raise ValueError(f"The classes {other!r} and {label!r} differ in case or spacing only: keep one")
        return names

    def names_of(self, label: str) -> list[str]:
        """The names that describe a class: the pack's, or the label itself. Case and underscores do not count.

        Args:
            label: of a class.

        Returns:
            One name at least.
        """
        for known, names in self.class_names.items():
            if label_key(known) == label_key(label):
                return names
        return [label]


def label_key(label: str) -> str:
    """Equal for labels that differ in letter case, underscores and spacing alone.

    Args:
        label: of a class.

    Returns:
        What such labels have in common.
    """
    return " ".join(label.replace("_", " ").split()).casefold()


def _check_template(template: str) -> None:
    if template.count("{}") != 1:
        raise ValueError(f"Prompt template {template!r} must contain {{}} exactly once, for the class's name")
