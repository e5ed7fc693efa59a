"""Packages whose names are loaded when they are first used (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_names(package: str, home: Mapping[str, str]) -> Callable[[str], object]:
    """A package's ``__getattr__``.

    Args:
        package: Its name.
        home: The module within it that each of its names is in.

    Returns:
        What loads a name.
    """

    def load(name: str) -> object:
        if name in home:
            return getattr(import_module(f"{package}.{home[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load
