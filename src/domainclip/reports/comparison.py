"""A comparison for people: ``compare.md``, ``compare.html``, the console's tables, and what a cell says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from domainclip.evaluation.compare_matrix import BETTER, FAILED, REFERENCE, SAME, UNTESTED, WORSE, Cell, ComparedData
from domainclip.reports.render import render
from domainclip.reports.schema.comparison import ComparisonReport
from domainclip.reports.sections import shown_metrics
from domainclip.reports.text import p_text, percent, points, title
from domainclip.words import counted

SIGNS = {BETTER: "▲", SAME: "=", WORSE: "▼", REFERENCE: "●", UNTESTED: "–", FAILED: "✕"}
_STYLES = {BETTER: "bold green", WORSE: "bold red", FAILED: "yellow"}  # of the terminal, whose theme sets the shades
_MOST_NAMED = 4  # data sets up to which a summary names them


def compare_markdown(report: ComparisonReport) -> str:
    """The text of ``compare.md``.

    Args:
        report: The comparison.

    Returns:
        The page.
    """
    return render("compare.md.j2", **_values(report))


def compare_html(report: ComparisonReport) -> str:
    """The text of ``compare.html``: one page that needs nothing else, readable in any browser and in print.

    Args:
        report: The comparison.

    Returns:
        The page.
    """
    columns = []
    for column in report.data:
        cells = [report.cell(model.name, column.name) for model in report.models]
        if any(cell.value is not None for cell in cells):
            known = [cell.metrics for cell in cells if cell.metrics]
            names = dict.fromkeys(name for metrics in known for name in shown_metrics({}, metrics, sections=True))
            columns.append((column, cells, Scale.of(cells), list(names)))
    page = {"title": comparison_title(report), "style": "compare.css.j2", "columns": columns, "signs": SIGNS}
    return render("compare.html.j2", **_values(report), **page)


def compare_tables(report: ComparisonReport) -> list[Table]:
    """Tables for the terminal, one for every data set that has figures: a matrix of ten columns would not fit.

    Args:
        report: The comparison.

    Returns:
        The tables.
    """
    p_name = f"p ({report.method.correction})" if report.method.tests else "p"
    tables = []
    for column in report.data:
        if column.n_units is None:
            continue
        facts = ", ".join(part for part in (title(column.metric), data_facts(column)) if part)
        found = Table(title=escape(f"{column.name}: {facts}"), title_justify="left", box=SIMPLE_HEAD)
        found.add_column("model", overflow="fold")
        for name in ("value", "95 % interval", "change", p_name):
            found.add_column(name, justify="right", no_wrap=True)
        found.add_column("verdict", no_wrap=True)
        for model in report.models:
            cell = report.cell(model.name, column.name)
            found.add_row(
                escape(model.name),
                percent(cell.value),
                interval_text(cell),
                "" if cell.change is None else points(cell.change),
                p_text(cell.p_adjusted),
                Text(verdict_text(cell), style=_STYLES.get(cell.verdict, "")),
            )
        tables.append(found)
    return tables


@dataclass(frozen=True)
class Scale:
    """A scale from ``low`` to ``high``, on which fractions have a place in per cent of its width."""

    low: float
    high: float

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Scale:
        """One that holds all intervals with some room, in whole tenths.

        Args:
            cells: Cells of the matrix, at least one of them with a value.

        Returns:
            The scale.
        """
        ends = [end for cell in cells for end in (cell.value, cell.low, cell.high) if end is not None]
        return cls(max(0, int((min(ends) - 0.02) * 10)) / 10, min(10, int((max(ends) + 0.02) * 10) + 1) / 10)

    def place(self, fraction: float) -> str:
        """Where a fraction is.

        Args:
            fraction: In the units of ``low`` and ``high``.

        Returns:
            Per cent of the scale's width from its left end, with two decimals.
        """
        return f"{100 * (fraction - self.low) / (self.high - self.low):.2f}"

    def width(self, low: float, high: float) -> str:
        """How wide an interval is.

        Args:
            low: Its lower end.
            high: Its upper end.

        Returns:
            Per cent of the scale's width, with two decimals.
        """
        return f"{100 * (high - low) / (self.high - self.low):.2f}"


def interval_text(cell: Cell) -> str:
    """An interval in per cent.

    Args:
        cell: A cell of the matrix.

    Returns:
        "81.2–89.1", nothing where there is no interval.
    """
    return "" if cell.low is None or cell.high is None else f"{cell.low * 100:.1f}–{cell.high * 100:.1f}"


def change_text(cell: Cell) -> str:
    """A change in points against the reference.

    Args:
        cell: A cell of the matrix.

    Returns:
        "+3.2 (+0.4 to +6.1)", nothing where there is no change.
    """
    if cell.change is None:
        return ""
    if cell.change_low is None or cell.change_high is None:
        return points(cell.change)
    return f"{points(cell.change)} ({points(cell.change_low)} to {points(cell.change_high)})"


def verdict_text(cell: Cell) -> str:
    """A verdict with its sign.

    Args:
        cell: A cell of the matrix.

    Returns:
        "▲ better".
    """
    return f"{SIGNS[cell.verdict]} {cell.verdict}"


def comparison_title(report: ComparisonReport) -> str:
    """The heading of a comparison.

    Args:
        report: The comparison.

    Returns:
        "Comparison of 3 models on 2 data sets".
    """
    counts = [(len(report.models), "model"), (len(report.data), "data set")]
    return "Comparison of " + " on ".join(counted(n, word) for n, word in counts)


def data_facts(column: ComparedData) -> str:
    """How much a data set holds.

    Args:
        column: The data set.

    Returns:
        "210 images in 35 groups", as far as it is known.
    """
    if column.n_images is None:
        return ""
    text = counted(column.n_images, "image")
    if column.unit == "group" and column.n_units not in (None, column.n_images):
        text += f" in {counted(column.n_units, 'group')}"
    return text


def summary_lines(report: ComparisonReport) -> list[str]:
    """What became of every model but the reference.

    Args:
        report: The comparison.

    Returns:
        "tuned: better on a, b; worse on c.", with counts where names would be many.
    """
    lines = []
    for model in report.models:
        if model.name == report.reference:
            continue
        parts = []
        for verdict in (BETTER, WORSE, SAME, UNTESTED, FAILED):
            on = [cell.data for cell in report.cells if cell.model == model.name and cell.verdict == verdict]
            if on:
                parts.append(f"{verdict} on {', '.join(on) if len(report.data) <= _MOST_NAMED else len(on)}")
        lines.append(f"{model.name}: {'; '.join(parts)}.")
    return lines


def problems(report: ComparisonReport) -> list[str]:
    """Cells without a figure and cells without a test.

    Args:
        report: The comparison.

    Returns:
        Sentences with the reason; one that all models share is said once.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for cell in report.cells:
        if cell.reason:
            found.setdefault((cell.data, cell.verdict, cell.reason), []).append(cell.model)
    every = len(report.models)
    return [
        f"{data}, {'all models' if len(models) == every else ', '.join(models)}: {verdict}. {reason}"
        for (data, verdict, reason), models in found.items()
    ]


def notes(report: ComparisonReport) -> list[str]:
    """What the data sets say about themselves, and how many rows of each were skipped.

    Args:
        report: The comparison.

    Returns:
        Sentences, each with the name of its data set.
    """
    lines = [
        f"{column.name}: {note.removeprefix(f'{column.name}: ')}" for column in report.data for note in column.notes
    ]
    return lines + [
        f"{column.name}: {counted(column.n_skipped, 'row')} skipped, the same for all models"
        for column in report.data
        if column.n_skipped
    ]


def _values(report: ComparisonReport) -> dict[str, Any]:
    """What both pages show."""
    return {
        "report": report,
        "summary": summary_lines(report),
        "problems": problems(report),
        "notes": notes(report),
        "method": _method_lines(report),
        "setting": _setting(report),
        "facts": _column_facts,
        "interval": interval_text,
        "change": change_text,
        "verdict_of": verdict_text,
        "data_facts": data_facts,
        "heading": comparison_title(report),
    }


def _setting(report: ComparisonReport) -> str:
    """Split, reference, and the metric where all data sets have the same."""
    shared = report.shared_metric
    parts = [f"Split {report.split}", f"reference: {report.reference}", shared and title(shared)]
    return "; ".join(part for part in parts if part) + "."


def _column_facts(report: ComparisonReport, column: ComparedData) -> str:
    """What a column's head says below its name: the metric unless all share one, and the number of images."""
    metric = title(column.metric) if report.shared_metric is None and column.n_units is not None else ""
    return ", ".join(part for part in (metric, data_facts(column)) if part)


def _method_lines(report: ComparisonReport) -> list[str]:
    """How the figures came about and what a verdict means, in sentences."""
    method = report.method
    lines = [
        "Every model saw the same rows and was asked with the same prompts; images and texts were prepared as in its "
        f"own training. {report.prompts}".strip(),
        f"Intervals hold with 95 % confidence; they come from {method.resamples:,} resamples of the groups "
        "(patients, boards, specimens) where the data name them, and of the images elsewhere. Where every one of "
        "them is right, or every one wrong, Wilson's interval stands in.",
    ]
    if method.tests:
        lines.append(
            f"Each verdict is that of a two-sided exchange test against {report.reference}: how often is the "
            "difference as large when a coin decides, group by group (or image by image), which of the two models gave "
            f"which answers? Where there are several tests (here {method.tests}), their p values are corrected by "
            f"{method.correction}'s method, so that the chance of even one false "
            f'"better" or "worse" in the matrix is at most {method.alpha:.0%}. The interval of a single change is '
            "not corrected and comes from the resamples, not from the exchange: it may leave out zero where the "
            "verdict is no difference, and it may hold zero where the verdict is better or worse."
        )
        lines.append(
            '"No difference" means that these images do not show one. A small one may still be there: the interval '
            "of the change says how large."
        )
    return lines
