"""What an experiment tracker is to this package: an exporter, found by its name.

A plugin adds one: ``@EXPORTERS.register("mine")`` before a class derived from ``Exporter``; a recipe then names it,
``report_to: [mine]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from domainclip.errors import MissingExtraError
from domainclip.registry import Registry

Outcome = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True)
class RunFacts:
    """What a tracker is told of a run at its begin.

    Attributes:
        id: Tells the run from all others, over its resumptions: 32 hexadecimal digits.
        name: Of its folder.
        folder: Where its files are.
        recipe: The resolved recipe by key, which has no secrets.
    """

    id: str
    name: str
    folder: Path
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """A row of a run's files: what was measured at a step.

    Attributes:
        step: Optimizer steps that are behind.
        kind: Tells rows of one step apart: the names of all that the row had.
        values: Finite figures by name.
        texts: A sentence for some of the names, such as what a milestone says.
    """

    step: int
    kind: str
    values: Mapping[str, float]
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a run has come to.

    Attributes:
        outcome: How it has ended.
        text: Why it has ended, in sentences.
        verdict: Whether the training helped, in the words of the report; empty where there is none.
    """

    outcome: Outcome
    text: str = ""
    verdict: str = ""


class Exporter:
    """Hands a run's figures to a tracker. Derive from it and register the class; it is made without arguments, before
    the work, so that a missing package is said then. Everything else is called in a thread of its own, may take its
    time, and is called again where it raises."""

    destination: str = ""
    """Where it sends to, such as an address. What one place has had is sent again to another. No password."""
    keeps_at_once: bool = True
    """Whether what ``log`` was given survives the death of this process once it has returned. If not, ``held`` is
    asked for everything when a run goes on."""

    def start(self, run: RunFacts) -> None:
        """Begin a run, or go on with the one that has this ``run.id``. Called again after an error: what an earlier
        connection still holds back is written, or given up, before this returns.

        Args:
            run: What there is to know of it.
        """
        raise NotImplementedError

    def held(self, rows: Sequence[Figures]) -> set[tuple[int, str]]:
        """Say which figures the tracker has already. Asked where it is not known whether they arrived.

        Args:
            rows: Those that are in doubt.

        Returns:
            Step and name of each figure that is there; more than was asked for does no harm. Empty: all are sent.
        """
        return set()

    def log(self, rows: Sequence[Figures]) -> None:
        """Send figures.

        Args:
            rows: In the order of the run's files: mostly, but not always, by step. A few hundred at most.
        """
        raise NotImplementedError

    def finish(self, result: Result) -> None:
        """End the run, which may go on later.

        Args:
            result: What it has come to.
        """


EXPORTERS: Registry[Callable[[], Exporter]] = Registry("tracker (report_to)")
"""Each entry makes an exporter."""


def require(package: str, extra: str) -> Any:
    """Import an optional package.

    Args:
        package: What is imported, with dots.
        extra: Of this package, that brings it.

    Returns:
        The module.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise MissingExtraError(package.partition(".")[0], extra, f"report_to={extra}") from error


def without_password(address: str) -> str:
    """An address that may be written down.

    Args:
        address: It may hold ``name:password@``.

    Returns:
        The same without that.
    """
    return re.sub(r"//[^/@]*@", "//", address)
