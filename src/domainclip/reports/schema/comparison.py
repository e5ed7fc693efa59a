"""The schema of ``compare.json``: models × data sets, a figure and a verdict in every cell."""

from __future__ import annotations

from domainclip.evaluation.compare_matrix import Cell, ComparedData, ComparedModel, Matrix, Method
from domainclip.reports.schema.base import Content, SchemaVersion
from domainclip.reports.schema.skipped import SkippedRow


class ComparisonReport(Content):
    """The content of ``compare.json``.

    Args:
        reference: The model that the others are tested against.
        cells: All models of the first data set, then of the next.
        prompts: A sentence: whose prompts all models were asked with.
        summary: For each ``model`` a count under each verdict that occurs.
        skipped: Rows that no model could be evaluated on, by data set.
    """

    schema_version: SchemaVersion
    split: str
    prompts: str = ""
    reference: str
    models: list[ComparedModel]
    data: list[ComparedData]
    cells: list[Cell]
    summary: list[dict[str, str | int]]
    method: Method
    skipped: dict[str, list[SkippedRow]] = {}

    @classmethod
    def of(cls, matrix: Matrix, *, split: str, prompts: str, skipped: dict[str, list[SkippedRow]]) -> ComparisonReport:
        """The report of a matrix.

        Args:
            matrix: Its figures and verdicts.
            split: Of which rows.
            prompts: A sentence: whose prompts all models were asked with.
            skipped: Rows that no model could be evaluated on, by data set.

        Returns:
            The report.
        """
        return cls(schema_version="1.0", split=split, prompts=prompts, skipped=skipped, **vars(matrix))

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
