"""The base of every group of settings: values checked on creation and on assignment, errors in plain sentences."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from domainclip.config.key_facts import KeyFacts, key_meant
from domainclip.errors import ConfigurationError

Group = TypeVar("Group", bound="Settings")

UNCHANGEABLE = "cannot be changed: a run works on a frozen copy of its recipe"
_NOT_ABOVE_ZERO = {"greater_than": "positive", "greater_than_equal": "zero or more"}


def shown(value: Any) -> str:
    """A value as messages show it: what Python writes for it, cut where it is long.

    Args:
        value: any.

    Returns:
        At most 80 characters.
    """
    try:
        text = repr(value)
    except ValueError:  # of numbers of thousands of digits Python writes none
        return "a number of thousands of digits"
    except RecursionError:
        return "values that lie too deep inside each other"
    return text if len(text) <= 80 else f"{text[:60]}…{text[-19:]}"


def plain_message(error: ErrorDetails, fields: dict[str, Any]) -> str:
    """One pydantic error as the sentence a user wants to read; begins with what is wrong in plain words.

    Args:
        error: one of pydantic's errors.
        fields: the model's fields, by key.

    Returns:
        The sentence; it begins with what is wrong.
    """
    key = str(error["loc"][0]) if error["loc"] else ""
    value, kind, context = error["input"], error["type"], error.get("ctx", {})
    if kind in {"extra_forbidden", "no_such_attribute"}:
        guess = key_meant(fields, key)
        listing = (
            f". Known: {', '.join(fields)}" if len(fields) <= 20 else ". `domainclip config show` lists the known ones"
        )
        hint = f": did you mean {guess!r}?" if guess else listing
        return f"Unknown key {key!r}{hint}"
    if not key or kind == "value_error":  # our own validators speak plainly already
        return str(context.get("error", error["msg"]))
    field = fields.get(key)
    title = field.title if field is not None and field.title else key.replace("_", " ").capitalize()
    named = f"({key}={shown(value)})"
    limit = next((context[name] for name in ("gt", "ge", "lt", "le") if name in context), None)
    if kind == "frozen_instance":
        return f"{key} {UNCHANGEABLE}"
    if kind == "literal_error":
        return f"Invalid {title[0].lower() + title[1:]} {shown(value)}: choose {context['expected']}"
    if kind in _NOT_ABOVE_ZERO and limit == 0:
        return f"{title} must be {_NOT_ABOVE_ZERO[kind]} {named}"
    if kind.startswith(("greater_than", "less_than")):
        bound = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
        word = next(bound[name] for name in bound if name in context)
        return f"{title} must be {word} {limit} {named}"
    if kind == "missing":
        return f"{title} has too few values {named}"
    message = re.sub(r"^\w+ should ", "", error["msg"])  # "Input should be …", "String should have …"
    return f"{title} must {message} {named}"


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_bool(each) for each in get_args(annotation))


def _value_path(error: ErrorDetails) -> tuple[str | int, ...]:
    """Keys and places in lists down to the value that is wrong; an error of a validator may know more (``path``)."""
    cause = error.get("ctx", {}).get("error")
    inner = getattr(cause, "path", None) or next(iter(getattr(cause, "paths", ())), ())
    return (*error["loc"], *inner)


class Settings(BaseModel):
    """A group of settings of the recipe. Raises ``ConfigurationError`` (a ``ValueError`` too) for an unknown key or a
    bad value."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        protected_namespaces=(),
        validate_default=False,
        allow_inf_nan=False,
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise self._plain(error.errors()) from None

    @field_validator("*", mode="before")
    @classmethod
    def _paths_are_texts(cls, value: Any, info: ValidationInfo) -> Any:
        """Any key takes a ``Path``, as a caller in Python has it. In a key that may be a path ``~`` is the home folder:
        no shell writes it out within ``key=~/x``."""
        if isinstance(value, list | tuple):
            return [cls._paths_are_texts(each, info) for each in value]
        text = str(value) if isinstance(value, PurePath) else value
        facts = [each for each in cls.model_fields[info.field_name or ""].metadata if isinstance(each, KeyFacts)]
        return os.path.expanduser(text) if isinstance(text, str) and facts and facts[0].path else text

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_a_value(cls, value: Any, info: ValidationInfo) -> Any:
        key = str(info.field_name)
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{key}={shown(value)} holds a NUL character, which no path, column or name can have")
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{key}={value!a} is not UTF-8: rename the file or folder, or make a link to it")
        if isinstance(value, bool) and not _takes_bool(cls.model_fields[key].annotation):
            raise ValueError(f"{key} takes no truth value, but it is {str(value).lower()}")  # Python counts true as 1
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_counted(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"{info.field_name}={shown(value)} is larger than any number that a computer counts with")
        return value

    _frozen_group: bool = PrivateAttr(default=False)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self).model_fields and self._frozen_group:
            raise ConfigurationError(f"{name} {UNCHANGEABLE}")
        values, fields_set = dict(self.__dict__), set(self.model_fields_set)
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            # Where two keys contradict each other pydantic finds out after it has assigned: take that back.
            object.__setattr__(self, "__dict__", values)
            object.__setattr__(self, "__pydantic_fields_set__", fields_set)
            raise self._plain(error.errors()) from None

    def is_set(self, key: str) -> bool:
        """Whether the user gave this key a value, even the default one.

        Args:
            key: a key of this group.

        Returns:
            True where it was set; ``None`` counts as unset.
        """
        return key in self.model_fields_set and getattr(self, key) is not None

    def group(self, kind: type[Group]) -> Group:
        """A frozen copy of just the keys of one group, which remembers which of them were set.

        Args:
            kind: the class of the group, one of those that this one is composed of.

        Returns:
            The group with the values that this one has; they are not checked anew. Assigning to it is an error.
        """
        group: Group = kind.model_construct(  # type: ignore[assignment]
            _fields_set=self.model_fields_set & kind.model_fields.keys(),
            **{key: copy.deepcopy(getattr(self, key)) for key in kind.model_fields},
        )
        group._frozen_group = True
        return group

    @classmethod
    def _plain(cls, errors: Sequence[ErrorDetails]) -> ConfigurationError:
        messages = [plain_message(error, cls.model_fields) for error in errors]
        problem = ConfigurationError("\n".join(dict.fromkeys(messages)))
        problem.messages = messages  # type: ignore[attr-defined]
        problem.keys = [str(error["loc"][0]) for error in errors if error["loc"]]  # type: ignore[attr-defined]
        problem.paths = [_value_path(error) for error in errors]  # type: ignore[attr-defined]
        return problem
