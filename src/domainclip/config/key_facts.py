"""What is known about a recipe's key besides its type and help, stated where the key is declared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from domainclip.registry import nearest

Section = Literal[
    "model", "data", "images", "texts", "augmentation", "loss", "training", "prompts", "evaluation", "machine", "run"
]
"""What a key is about, in the order in which people read a recipe."""


@dataclass(frozen=True)
class Search:
    """How ``domainclip tune`` varies a key.

    Attributes:
        low: the lower end of its range; None: the user says between what.
        high: the upper end, included.
        log: whether values are drawn on a logarithmic scale.
        relative: whether the ends are factors of the recipe's own value.
        choices: values to choose from, in place of a range.
        steers: whether the value decides if other keys are read at all, so that it is drawn before them.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    relative: bool = False
    choices: tuple[Any, ...] = ()
    steers: bool = False

    @property
    def by_default(self) -> bool:
        """Whether the key is searched where the user names none."""
        return self.low is not None or bool(self.choices)


BUDGET = "every trial trains the same number of steps: give it with steps=…"
SAME_FOR_ALL = "it changes the rows or the way trials are evaluated, which must be the same for all"
_IDLE = "it changes nothing that is learned"


@dataclass(frozen=True)
class KeyFacts:
    """The facts about one key.

    Attributes:
        section: what it is about. A domain's file has the sections images, texts, prompts, augmentation, loss, training
            and evaluation.
        changes_weights: whether training may end with other weights for another value of it, be it that they are
            learned otherwise, if only by their rounding, or that another validation chooses them. What is done with
            the weights after the training does not count.
        one_run: whether it belongs to one run, its data or its machine: a domain cannot set it.
        search: how it is varied in a search, or in words why it cannot be.
        common: whether it is among the first that somebody changes.
        path: whether a value may be the path of something that is read, or of something that is written.
        also: what other programs call it, for the answer to somebody who does.
        names: what the package itself has by the name that this key, or each entry of it, is; a plugin may add others.
    """

    section: Section
    changes_weights: bool = True
    one_run: bool = False
    search: Search | str = Search()
    common: bool = False
    path: Literal["read", "written"] | None = None
    also: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def key(
    default: Any,
    section: Section,
    description: str,
    *,
    changes_weights: bool = True,
    one_run: bool = False,
    search: Search | str | None = None,
    common: bool = False,
    path: Literal["read", "written"] | None = None,
    also: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
    **limits: Any,
) -> Any:
    """Declare a key of a recipe.

    Args:
        default: what holds when nothing better is known.
        section: see ``KeyFacts``.
        description: one line that is also the help text.
        changes_weights: see ``KeyFacts``, as for the three below; False for what training does not depend on.
        one_run: True for what no domain may set.
        search: left out, the user says between what; a key that changes no weight cannot be searched.
        common: True for what is shown first.
        path: see ``KeyFacts``, as for ``also`` and ``names``. A leading ``~`` in it stands for the home folder.
        limits: the range (``gt``, ``ge``, ``lt``, ``le``, ``min_length``) and the ``title`` that messages use.

    Returns:
        pydantic's description of the field, which holds the ``KeyFacts``.
    """
    field = Field(default, description=description, **limits)
    if search is None:
        search = Search() if changes_weights else _IDLE
    field.metadata.append(KeyFacts(section, changes_weights, one_run, search, common, path, also, names))
    return field


def facts_of(model: type[BaseModel], name: str) -> KeyFacts:
    """The facts about one key.

    Args:
        model: a recipe, or a group of its settings.
        name: the key.

    Returns:
        What was stated where the key is declared.

    Raises:
        LookupError: the model has no such key, or nothing was stated of it.
    """
    found = [each for each in model.model_fields[name].metadata if isinstance(each, KeyFacts)]
    if not found:
        raise LookupError(f"{model.__name__}.{name} is declared without its facts: declare it with key(…)")
    return found[0]


def facts_by_key(model: type[BaseModel]) -> Iterator[tuple[str, KeyFacts]]:
    """All keys with their facts.

    Args:
        model: a recipe, or a group of its settings.

    Yields:
        Name and facts, in the order of declaration.
    """
    for name in model.model_fields:
        yield name, facts_of(model, name)


def key_meant(fields: Mapping[str, FieldInfo], name: str, guess: bool = True) -> str | None:
    """The key that somebody means by another name.

    Args:
        fields: of a recipe, or of a group of its settings, by key.
        name: what they wrote: an option, a name of another program, or misspelt.
        guess: whether the nearest spelling counts, too.

    Returns:
        The key; None where none is meant for sure.
    """
    plain = name.strip("-–—−").replace("-", "_").casefold()
    if plain in fields:
        return plain
    for key_name, field in fields.items():
        if any(isinstance(each, KeyFacts) and plain in each.also for each in field.metadata):
            return key_name
    return nearest(plain, fields) if guess else None
