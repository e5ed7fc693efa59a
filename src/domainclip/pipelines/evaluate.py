"""What ``domainclip evaluate`` does: one model, one data set, the figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.records import PairList
from domainclip.data.skipped import Problems, readable_pairs, skipped_rows
from domainclip.data.splits import load_splits_of
from domainclip.errors import ConfigurationError, DataError
from domainclip.evaluation.build import build_evaluator
from domainclip.evaluation.protocols import EvaluationResult
from domainclip.evaluation.shared import SharedEmbedder
from domainclip.inference import ModelSession
from domainclip.metrics.metric import METRICS
from domainclip.pipelines.error_analysis import expect_shown, write_error_analysis_of
from domainclip.reports.error_analysis_page import check_place
from domainclip.reports.schema.base import jsonable
from domainclip.reports.schema.evaluation import EvaluationFile
from domainclip.reports.schema.run import DomainFigures, SemanticFigures
from domainclip.reports.schema.skipped import SkippedRow, skipped_counts
from domainclip.reports.sections import DomainTable, domain_tables, semantic_notes, skipped_lines
from domainclip.reports.text import figure_text
from domainclip.resolve import ResolvedInference, resolve_for_inference

_MOST_ROWS, _MOST_COLUMNS, _NAME_WIDTH = 20, 10, 10


@dataclass
class EvaluationReport:
    model: str
    data: str
    split: str
    result: EvaluationResult
    skipped: list[dict] = field(default_factory=list)
    error_analysis: str | None = None
    notes: list[str] = field(default_factory=list)
    """What there is to know of the data: how they were cut, what two splits share, what was not evaluated."""

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` and ``--output`` give.

        Returns:
            Plain values; ``error_analysis`` only where there is one.
        """
        found = EvaluationFile(
            model=self.model,
            data=self.data,
            split=self.split,
            metrics=self.result.metrics,
            details=jsonable(self.result.details),
            notes=self.notes,
            skipped=[SkippedRow(**row) for row in self.skipped],
            skipped_counts=skipped_counts(self.skipped),
            **({"error_analysis": self.error_analysis} if self.error_analysis else {}),
        )
        return found.to_dict()

    def print(self, console: Console | None = None) -> None:
        """Show the metrics, the domain's tables, the notes, and how many rows were skipped.

        Args:
            console: Where; standard output, if left out.
        """
        console = console or Console()
        table = Table(title=escape(f"{self.model} on {self.data}, split {self.split}"))
        table.add_column("metric")
        table.add_column("value", justify="right")
        shown = {
            name: record
            for name, record in self.result.records.items()
            if METRICS[name].section != "domain" and not METRICS[name].is_semantic
        }
        if any(record.has_interval for record in shown.values()):
            table.add_column("95 % interval", justify="right")
        for name, record in shown.items():
            value = f"{record.value:.4f}" if isinstance(record.value, float) else str(record.value)
            ends = [f"{record.low:.4f} to {record.high:.4f}"] if record.has_interval else []
            table.add_row(name, value, *ends)
        console.print(table)
        self._print_domain_metrics(console)
        self._print_semantics(console)
        for note in self.notes:
            console.print(f"Data: {note}", markup=False, highlight=False)
        for line in skipped_lines(skipped_counts(self.skipped)):
            console.print(line, markup=False, highlight=False)
        if self.error_analysis:
            console.print(f"Error analysis: {self.error_analysis}", markup=False, highlight=False)

    def _print_domain_metrics(self, console: Console) -> None:
        details = self.result.details.get("domain_metrics")
        if not details or not details["metrics"]:
            return
        found = DomainFigures.from_values(details)
        table = Table(title=f"Domain metrics ({found.domain})")
        table.add_column("figure")
        table.add_column("value (95 % interval)", justify="right")
        for name, entry in found.metrics.items():
            table.add_row(escape(METRICS[name].title), figure_text(entry, name))
        console.print(table)
        for part in domain_tables(found, intervals=False):
            console.print(_shortened(part))
        for note in found.notes:
            console.print(f"{note}.", markup=False, highlight=False)

    def _print_semantics(self, console: Console) -> None:
        details = self.result.details.get("semantics")
        if not details:
            return
        found = SemanticFigures.from_values(details)
        if found.metrics:
            table = Table(title="Documents, near misses and terminology")
            table.add_column("figure")
            table.add_column("value (95 % interval)", justify="right")
            for name, entry in found.metrics.items():
                table.add_row(escape(METRICS[name].title), figure_text(entry, name))
            console.print(table)
        for note in semantic_notes(found):
            console.print(f"{note.rstrip('.')}.", markup=False, highlight=False)


def _shortened(found: DomainTable) -> Table:
    """As much of a table as a terminal shows at a glance."""
    header, rows = found.header, found.rows
    if len(header) > _MOST_COLUMNS:  # a matrix of many disciplines: each one's images and accuracy
        header, rows = [*header[:2], header[-1]], [[*row[:2], row[-1]] for row in rows]
    table = Table(title=escape(found.title), pad_edge=False)
    longest = max((len(word) for row in rows[:_MOST_ROWS] for word in str(row[0]).split()), default=0)
    for index, name in enumerate(header):  # names keep their words whole; the figures beside them are short
        width = 0 if index else min(longest, _NAME_WIDTH)
        table.add_column(escape(name), justify="right" if index else "left", overflow="fold", min_width=width or None)
    for row in rows[:_MOST_ROWS]:
        table.add_row(*(escape(str(value)) for value in row))
    if len(rows) > _MOST_ROWS:
        table.caption = f"{_MOST_ROWS} of {len(rows)}; --json and --output give all"
    return table


def rows_of_split(resolved: ResolvedInference, split: str) -> tuple[PairList, list[dict], list[str]]:
    """The rows of a split, cut as a training run would cut them.

    Args:
        resolved: The recipe with its domain.
        split: ``train``, ``val``, ``test``, or ``all`` for every row.

    Returns:
        The rows; those that were skipped; and what the data say of themselves: how they were cut, and what two splits
        share.

    Raises:
        ConfigurationError: The split is unknown.
        DataError: It has no rows.
    """
    names = ("train", "val", "test", "all")
    if split not in names:
        raise ConfigurationError(f"Invalid split {split!r}: choose one of {', '.join(names)}")
    splits = load_splits_of(resolved)
    chosen = {"train": splits.train, "val": splits.val, "test": splits.test}
    parts = chosen if split == "all" else {split: chosen[split]}
    rows = PairList([pair for part in parts.values() for pair in part])
    if not rows:
        raise DataError(f"No valid image-text pairs in the {split} split of {resolved.data.data_path}")
    return rows, skipped_rows(parts), splits.notes


def readable_rows(
    rows: PairList, problems: Problems, config: CLIPFinetuningConfig, split: str, skipped: list[dict]
) -> PairList:
    """The rows whose images decode.

    Args:
        rows: The rows of a split.
        problems: From images to what is wrong with each, empty where nothing is.
        config: The recipe; with its ``strict`` no row is skipped.
        split: Their name in messages.
        skipped: The rows skipped here are added to it.

    Returns:
        The rows that are left, at least one.

    Raises:
        DataError: No image can be read; with ``strict``, one of them cannot.
    """
    kept = readable_pairs(rows, problems, split, config.strict, skipped)
    if not kept:
        raise DataError(f"No image of the {split} split of {config.data_path} can be read: {skipped[-1]['reason']}")
    return kept


def run_evaluation(
    config: CLIPFinetuningConfig, split: str = "test", error_analysis: Path | None = None
) -> EvaluationReport:
    """Evaluate ``config.model_name`` on a split of ``config.data_path``, cut as a training run would cut it.

    Args:
        config: The recipe, which names model and data.
        split: ``train``, ``val``, ``test``, or ``all`` for every row.
        error_analysis: A folder for ``error_analysis.html``; None for none.

    Returns:
        The figures.

    Raises:
        ConfigurationError: The split is unknown, or the folder cannot be written.
        DataError: The split has no rows that can be evaluated.
        ModelLoadError: The model cannot be had.
    """
    if error_analysis is not None:
        check_place(error_analysis)
    resolved = resolve_for_inference(config)
    rows, skipped, notes = rows_of_split(resolved, split)
    session = ModelSession.from_pretrained(resolved)
    engine = session.engine()
    if error_analysis is not None:
        expect_shown(engine, rows)
    rows = readable_rows(rows, engine.readable, config, split, skipped)
    embed = SharedEmbedder(engine)
    evaluator = build_evaluator(session, rows, domain_metrics=True)
    result = evaluator.evaluate(embed)
    notes = [*notes, *evaluator.notes]
    report = EvaluationReport(config.model_name, config.data_path, split, result, skipped, notes=notes)
    if error_analysis is not None:
        model = Path(config.model_name)
        if model.name in ("model", "best"):  # a run's own folders: whose, says the one above
            model = model.resolve().parent
        title = f"{model.name} on {Path(config.data_path).name}, {split} split"
        report.error_analysis = str(write_error_analysis_of(session, rows, engine, embed, error_analysis, title))
    return report
