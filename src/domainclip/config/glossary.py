"""A domain's vocabulary: abbreviations, synonyms, and what its opposites are called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from domainclip.config.base import Settings
from domainclip.config.located_yaml import LocatedYaml, read_yaml_text
from domainclip.errors import ConfigurationError
from domainclip.registry import nearest

_SHIPPED = resources.files("domainclip.config") / "glossaries"


class _AtPath(ValueError):
    """A problem with one value inside a field; ``path`` leads to it from there."""

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path = path


class Sense(Settings):
    """One thing an abbreviation stands for. With ``context``, only where the caption holds one of these words; the
    neighbours (``only_before``, ``not_before``, ``not_after``) say what may stand right beside it.
    """

    model_config = ConfigDict(str_strip_whitespace=True)

    expansion: str = Field(description="What is written in its place.")
    context: list[str] = Field(default_factory=list, description="Words of which one must stand in the caption.")
    only_before: list[str] = Field(
        default_factory=list, description="Words of which one must come right after it; `number`: any number."
    )
    not_before: list[str] = Field(
        default_factory=list, description="Words of which none may come right after it; `number`: any number."
    )
    not_after: list[str] = Field(
        default_factory=list, description="Words of which none may stand right before it; `number`: any number."
    )
    plural: str | None = Field(None, description="The expansion's plural, where adding an s or ies is not right.")

    @field_validator("expansion", "plural")
    @classmethod
    def _says_something(cls, given: str | None) -> str | None:
        if given is not None and not given:
            raise ValueError("An abbreviation stands for an empty expansion or plural: fill it in or remove it")
        return given

    @field_validator("context", "only_before", "not_before", "not_after")
    @classmethod
    def _words_are_words(cls, given: list[str]) -> list[str]:
        return _none_blank(given, "the words around an abbreviation")

    @property
    def certain(self) -> bool:
        """Whether the abbreviation stands for this wherever it stands."""
        return not (self.context or self.only_before or self.not_before or self.not_after)


class Glossary(Settings):
    """Abbreviations with what they stand for, groups of terms that mean the same, and pairs that exclude each other.

    In the file an abbreviation's value is its expansion, or a list of senses, each with ``expansion`` and where it is
    meant (see ``Sense``). White space around an entry is taken off; an entry without anything else is an error.
    """

    model_config = ConfigDict(str_strip_whitespace=True)

    description: str = Field("", description="One line about the field.")
    abbreviations: dict[str, list[Sense]] = Field(
        default_factory=dict, description="Short form: expansion, or a list of senses with expansion and context."
    )
    synonyms: list[list[str]] = Field(
        default_factory=list, description="Groups of terms that may stand for each other in any sentence."
    )
    negations: list[str] = Field(
        default_factory=list,
        description="The domain's words of negation besides no, not, without, absent and the like.",
    )
    negation_pairs: list[tuple[str, str]] = Field(
        default_factory=list, description="Pairs of a statement and its negation, such as [fracture, no fracture]."
    )

    @field_validator("abbreviations", mode="before")
    @classmethod
    def _expansions_are_senses(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        senses: dict[Any, Any] = {}
        for short, value in given.items():
            stripped = str(short).strip()
            if not stripped:
                raise _AtPath(f"The abbreviation {short!r} is empty: fill it in or remove it", short)
            if short != stripped and stripped in given:
                raise _AtPath(f"The abbreviation {stripped!r} stands twice: keep one", short)
            if isinstance(value, str):
                value = [{"expansion": value}]
            senses[short] = [value] if isinstance(value, dict) else value
        return senses

    @field_validator("abbreviations")
    @classmethod
    def _senses_can_be_told_apart(cls, given: dict[str, list[Sense]]) -> dict[str, list[Sense]]:
        for short, senses in given.items():
            if not senses:
                raise _AtPath(f"The abbreviation {short!r} stands for nothing: fill it in or remove it", short)
            without = [sense.expansion for sense in senses if not sense.context]
            if len(senses) > 1 and without:
                raise _AtPath(
                    f"The abbreviation {short!r} has {len(senses)} senses, and {without[0]!r} has no context: say by "
                    "which words each one is known",
                    short,
                )
        return given

    @field_validator("synonyms")
    @classmethod
    def _groups_are_groups(cls, groups: list[list[str]]) -> list[list[str]]:
        seen: dict[str, list[str]] = {}
        for index, group in enumerate(groups):
            if len(group) < 2 or not all(group):
                raise _AtPath(f"The synonym group {group} needs at least two terms, none of them empty", index)
            for term in group:
                if term.casefold() in seen:
                    raise _AtPath(f"The term {term!r} stands in two synonym groups (or twice in one): keep one", index)
                seen[term.casefold()] = group
        return groups

    @field_validator("negations")
    @classmethod
    def _negations_are_words(cls, given: list[str]) -> list[str]:
        return _none_blank(given, "the negations")

    @field_validator("negation_pairs")
    @classmethod
    def _pairs_exclude_each_other(cls, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        for index, (statement, negation) in enumerate(pairs):
            if not statement or not negation or statement.split() == negation.split():
                raise _AtPath(
                    f"The negation pair {statement!r} / {negation!r} must be a statement and its negation", index
                )
        return pairs

    @model_validator(mode="after")
    def _expansions_end(self) -> Self:
        chain = next(_cycles(self.abbreviations), None)
        if chain is not None:
            raise _AtPath(
                f"The abbreviations expand into each other without end: {' → '.join(chain)}. Write one of them out",
                "abbreviations",
                chain[0],
            )
        return self

    def expansion_of(self, sense: Sense) -> str:
        """What a sense stands for, with the unambiguous abbreviations inside written out as well.

        Args:
            sense: of one of its abbreviations.

        Returns:
            The expansion in full.
        """
        return self.written_out(sense.expansion)

    def written_out(self, text: str) -> str:
        """A text of the glossary's own with its unambiguous abbreviations written out.

        Args:
            text: one of the glossary's own texts.

        Returns:
            The text without those abbreviations.
        """
        return _written_out(text, self.abbreviations)


def _none_blank(words: list[str], of: str) -> list[str]:
    if "" in words:
        raise _AtPath(f"One of {of} is empty: fill it in or remove it", words.index(""))
    return words


def as_written(short: str) -> list[str]:
    """An abbreviation in its own letters; micro sign and Greek mu, which look alike, are one letter.

    Args:
        short: the abbreviation.

    Returns:
        Its spellings.
    """
    return list(dict.fromkeys((short, short.replace("μ", "µ"), short.replace("µ", "μ"))))


def capitalised(short: str) -> list[str]:
    """How an abbreviation in small letters alone is written where a sentence begins with it: "Approx."; else none.

    Args:
        short: the abbreviation.

    Returns:
        One spelling or none.
    """
    first = short[:1].upper()
    in_small_letters = short == short.lower() and first != short[:1] == first.lower()
    return [first + short[1:]] if in_small_letters else []


@cache
def word_pattern(short: str) -> re.Pattern[str]:
    """The abbreviation as a word of its own.

    Joined by a hyphen to capitals or digits it is part of a longer name ("SARS-CoV-2"), and is not found.

    Args:
        short: the abbreviation.

    Returns:
        A pattern that finds it in a text.
    """
    spellings = "|".join(map(re.escape, [*as_written(short), *capitalised(short)]))
    return re.compile(rf"(?<!\w)(?<![A-Z0-9]-)(?:{spellings})(?!\w)(?!-[A-Z0-9])")


def _used_in(expansion: str, abbreviations: dict[str, list[Sense]]) -> list[str]:
    return [short for short in abbreviations if word_pattern(short).search(expansion)]


def _cycles(abbreviations: dict[str, list[Sense]]) -> Iterator[list[str]]:
    uses = {
        short: list(dict.fromkeys(used for sense in senses for used in _used_in(sense.expansion, abbreviations)))
        for short, senses in abbreviations.items()
    }
    done: set[str] = set()

    def walk(short: str, chain: list[str]) -> Iterator[list[str]]:
        if short in chain:
            yield [*chain[chain.index(short) :], short]
            return
        if short in done:
            return
        for used in uses[short]:
            yield from walk(used, [*chain, short])
        done.add(short)

    for short in abbreviations:
        yield from walk(short, [])


def _written_out(text: str, abbreviations: dict[str, list[Sense]]) -> str:
    for short in sorted(_used_in(text, abbreviations), key=len, reverse=True):
        senses = abbreviations[short]
        if len(senses) == 1 and senses[0].certain:
            inner = _written_out(senses[0].expansion, abbreviations)
            text = word_pattern(short).sub(lambda _, inner=inner: inner, text)  # type: ignore[misc]
    return text


def shipped_glossaries() -> list[str]:
    """Names of the glossaries inside the package.

    Returns:
        Their names.
    """
    return sorted(entry.name.removesuffix(".yaml") for entry in _SHIPPED.iterdir() if entry.name.endswith(".yaml"))


def glossary_text(name: str) -> str:
    """The YAML of a shipped glossary, to be copied and changed.

    Args:
        name: of the glossary.

    Returns:
        The text of its file.
    """
    return (_SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")


def load_glossary(name_or_path: str | Path, folder: Path | None = None) -> Glossary:
    """A shipped glossary by name, or a YAML file by path; a relative path is first looked for in ``folder``.

    Args:
        name_or_path: a shipped name, or the path of a file.
        folder: where a relative path is first looked for.

    Returns:
        The checked glossary.

    Raises:
        ConfigurationError: it is missing or wrong (an unknown key, an ambiguous abbreviation without contexts,
            expansions that go in a circle, a term in two synonym groups, an empty entry); the message has file, line
            and key.
    """
    name = str(name_or_path)
    if name in shipped_glossaries():
        return _shipped(name)
    path = Path(name).expanduser()
    if folder is not None and (folder / path).is_file():
        path = folder / path
    if not path.is_file() and path.suffix not in (".yaml", ".yml"):
        guess = nearest(name, shipped_glossaries())
        hint = f"Did you mean {guess!r}? " if guess else ""
        raise ConfigurationError(
            f"Unknown glossary {name!r}. {hint}Shipped: {', '.join(shipped_glossaries())}; or give a YAML file's path"
        )
    return _checked(LocatedYaml.parse(read_yaml_text(path, "Glossary"), str(path)))


@cache
def _shipped(name: str) -> Glossary:
    return _checked(LocatedYaml.parse((_SHIPPED / f"{name}.yaml").read_text("utf-8"), f"glossary {name}"))


def _checked(found: LocatedYaml) -> Glossary:
    """A glossary from a file; an error names the line it comes from."""
    values = found.mapping("a glossary")
    try:
        return Glossary(**values)
    except ConfigurationError as error:
        path = next(iter(getattr(error, "paths", ())), ())
        raise ConfigurationError(f"{error} [{found.where(*path)}]") from None
