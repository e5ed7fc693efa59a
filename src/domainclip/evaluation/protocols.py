"""What evaluators are given, and what they give back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jaxtyping import Float
from pydantic import TypeAdapter
from torch import Tensor

from domainclip.metrics.metric import Metric
from domainclip.metrics.significance import UnitFigure

_RECORDS = TypeAdapter(dict[str, Metric])


class Embedder(Protocol):
    """Whatever turns images and texts into L2-normalised float32 rows on the CPU, in the order given."""

    def encode_images(self, paths: list[Path], /) -> Float[Tensor, "images dim"]:
        """Embed images.

        Args:
            paths: Image files.

        Returns:
            ``[images, dim]``, of unit length, float32 on the CPU, in the order given.
        """
        ...

    def encode_texts(self, texts: list[str], /) -> Float[Tensor, "texts dim"]:
        """Embed texts.

        Args:
            texts: Any texts.

        Returns:
            ``[texts, dim]``, of unit length, float32 on the CPU, in the order given.
        """
        ...


class LabelledPair(Protocol):
    """A row of a data set: an image, what is said of it, and its class, None where the data do not say."""

    @property
    def image_path(self) -> Path: ...

    @property
    def caption(self) -> str: ...

    label: str | None


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluator found.

    Args:
        records: Each figure with its interval, by name, in the order to show.
        details: What they were computed from, ready for a report.
        sums: Figures that can be resampled by single images or groups, by name: a comparison of models tests these.
    """

    records: dict[str, Metric]
    details: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, UnitFigure] = field(default_factory=dict)

    @classmethod
    def of(
        cls, values: Mapping[str, float], details: Mapping[str, Any] | None = None, n_units: int | None = None
    ) -> EvaluationResult:
        """A result from plain numbers.

        Args:
            values: Numbers by name.
            details: What they were computed from.
            n_units: How many images, queries or pairs each of the numbers is of, None where nobody counted.

        Returns:
            The result, without intervals.
        """
        records = {name: Metric(name, value, n_units=n_units) for name, value in values.items()}
        return cls(records, dict(details or {}))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EvaluationResult:
        """A result as a file holds it.

        Args:
            content: ``records`` and ``details``; a value or an end of an interval that was NaN is None.

        Returns:
            The result.
        """
        return cls(_RECORDS.validate_python(content["records"]), dict(content["details"]))

    @property
    def metrics(self) -> dict[str, float]:
        """The plain numbers by name."""
        return {name: record.value for name, record in self.records.items()}


class Evaluator(Protocol):
    """Whatever gives figures of an embedder.

    ``name`` is what a recipe calls it; ``primary_metric`` is the figure that decides, in the direction of
    ``greater_is_better``. One that has ``paths`` (images) gets them embedded together with all others'.
    """

    @property
    def name(self) -> str: ...

    @property
    def primary_metric(self) -> str: ...

    @property
    def greater_is_better(self) -> bool: ...

    def evaluate(self, embed: Embedder, /) -> EvaluationResult:
        """Evaluate an embedder.

        Args:
            embed: The model.

        Returns:
            Its figures and their details.
        """
        ...


class CallableEvaluator:
    """An evaluator that is also a function of the embedder: ``evaluator(embed)`` gives the plain numbers by name."""

    def __call__(self: Evaluator, embed: Embedder) -> dict[str, float]:
        return self.evaluate(embed).metrics
