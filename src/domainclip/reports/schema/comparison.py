"""The schema of ``compare.json``: models × data sets, a figure and a verdict in every cell."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from domainclip.reports.schema.base import Content, MetricValues, SchemaVersion

Verdict = Literal["better", "no difference", "worse", "reference", "not tested", "not evaluated"]


class ComparedModel(Content):
    """A model by its name."""

    name: str
    path: str


class ComparedData(Content):
    """A data set: the ``metric`` it was compared by, and the units (images or whole groups) that were resampled; None
    where no model could be evaluated."""

    name: str
    path: str
    metric: str
    unit: Literal["group", "image"]
    n_units: int | None
    n_rows: int | None = None
    n_images: int | None = None
    n_skipped: int = 0
    notes: list[str] = []


class Cell(Content):
    """One model on one data set. ``change`` is against the reference; ``p_adjusted`` is corrected for all tests."""

    model: str
    data: str
    metric: str
    verdict: Verdict
    reason: str | None
    value: float | None
    low: float | None
    high: float | None
    interval: str | None
    change: float | None
    change_low: float | None
    change_high: float | None
    differing_units: int | None
    p_value: float | None
    p_adjusted: float | None
    metrics: MetricValues


class VerdictCounts(Content):
    """How often a model got each verdict: beside ``model`` a count under each verdict that occurs."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int] = Field(init=False)

    model: str


class Method(Content):
    """How the figures came about."""

    interval: str
    test: str
    correction: str
    alpha: float
    tests: int
    resamples: int
    seed: int


class SkippedRow(Content):
    """A row that could not be used."""

    split: str | None = None
    image_path: str | None = None
    reason: str


class ComparisonReport(Content):
    """The content of ``compare.json``.

    Args:
        reference: The model that the others are tested against.
        cells: All models of the first data set, then of the next.
        prompts: A sentence: whose prompts all models were asked with.
        skipped: Rows that no model could be evaluated on, by data set.
    """

    schema_version: SchemaVersion
    split: str
    prompts: str = ""
    reference: str
    models: list[ComparedModel]
    data: list[ComparedData]
    cells: list[Cell]
    summary: list[VerdictCounts]
    method: Method
    skipped: dict[str, list[SkippedRow]] = {}

    def cell(self, model: str, data: str) -> Cell:
        """The cell of a model and a data set.

        Args:
            model: The model's name.
            data: The data set's name.

        Returns:
            Its cell.
        """
        return next(cell for cell in self.cells if cell.model == model and cell.data == data)

    @property
    def shared_metric(self) -> str | None:
        """The metric of all data sets that were evaluated, None where they have several."""
        found = {column.metric for column in self.data if column.n_units is not None}
        return found.pop() if len(found) == 1 else None
