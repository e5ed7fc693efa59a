"""Names that users can extend: a registry answers a wrong name with the right ones, and plugins add to it."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from domainclip.errors import ConfigurationError

T = TypeVar("T")


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Guess what a mistyped name was meant to be.

    Args:
        name: As it was typed.
        choices: Names that there are.

    Returns:
        The choice most like it, from a ``difflib`` ratio of 0.6 on, the first by name of several; else None.
    """
    found = difflib.get_close_matches(name, list(choices), n=5, cutoff=0.6)
    return max(sorted(found), key=lambda choice: difflib.SequenceMatcher(None, choice, name).ratio(), default=None)


class Registry(Generic[T]):
    """Maps names to entries: ``@LOSSES.register("mine")`` adds one, ``LOSSES["mine"]`` finds it.

    Looking up an unknown name is a ``ConfigurationError`` that lists the known ones.

    Args:
        kind: The word used in messages ("loss", "similarity metric").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Make a decorator that adds an entry.

        Args:
            name: Of the entry.

        Returns:
            The decorator, which returns what it is given.

        Raises:
            ConfigurationError: By the decorator: the name is taken already.
        """

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

    @property
    def entries(self) -> dict[str, T]:
        """All entries by name."""
        return dict(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))


def load_plugins(names: Sequence[str]) -> None:
    """Import the user's own modules, which register what they define. Each is imported once.

    Args:
        names: For each, a module's name (the working directory is searched too), or the path of a ``.py`` file.

    Raises:
        ConfigurationError: A module is not there, or fails while it is imported.
    """
    for name in names:
        try:
            if name.endswith(".py"):
                _import_file(Path(name).resolve())
            else:
                _import_module(name)
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"plugins: {name!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error


def _import_module(name: str) -> None:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # an installed command does not look there, `python -m` does
        sys.path.append(here)
    try:
        importlib.import_module(name)
    finally:
        if added:
            sys.path.remove(here)


def _import_file(path: Path) -> None:
    name = f"domainclip_plugin_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    if name in sys.modules:  # a second run in this process: what it registers is registered
        return
    if not path.is_file():
        raise ConfigurationError(f"plugins: there is no file {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
