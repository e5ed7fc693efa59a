"""A named collection that users can extend, and that answers a wrong name with the right ones."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from domainclip.errors import ConfigurationError

T = TypeVar("T")


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``name``, or None when nothing is close enough to be a slip of the hand."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


class Registry(Generic[T]):
    """Maps names to entries: ``@LOSSES.register("mine")`` adds one, ``LOSSES["mine"]`` finds it.

    ``kind`` is the word used in messages ("loss", "similarity metric"). Raises ``ConfigurationError`` for an
    unknown name (listing the known ones) and for a name that is taken already.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        def add(entry: T) -> T:
            if name in self._entries:
                raise ConfigurationError(f"A {self.kind} named {name!r} is registered already: choose another name")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            guess = nearest(name, self._entries)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise ConfigurationError(f"Invalid {self.kind} {name!r}.{hint} Known: {', '.join(sorted(self._entries))}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
