"""A run's report where it is the value of a cell: a line of text, or a verdict, a plot and a table as HTML."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from markupsafe import Markup

from domainclip.reports.render import render
from domainclip.reports.run_report import before_after_rows, majority_not_passed
from domainclip.reports.schema import RunReport
from domainclip.reports.text import MINUS, change_text, title, value_text

_OUTCOMES = {
    "better": "better",
    "worse": "worse",
    "unclear": "no clear change",
    "unknown": "not known whether it helped",
}
_PLOT = "before_after"


def report_line(report: RunReport) -> str:
    """The verdict in a few words.

    Args:
        report: The report.

    Returns:
        "better: accuracy 47.3% → 81.2% (+33.9 points)", without the figure where there is none.
    """
    name, outcome = report.verdict.metric, _OUTCOMES[report.verdict.outcome]
    if name is None:
        return outcome
    old, new = report.before.get(name), report.after.get(name)
    change = change_text(old, new, name).replace(" (worse)", "")
    return f"{outcome}: {title(name)} {value_text(old, name)} → {value_text(new, name)} ({change})"


def report_html(report: RunReport, folder: Path) -> str:
    """The verdict, the plot of before and after, and the table.

    Args:
        report: The report.
        folder: Of the run, where the plot is; without it the rest is shown.

    Returns:
        HTML that needs nothing else, in the colours of what surrounds it.
    """
    plot = folder / report.plots[_PLOT] if _PLOT in report.plots else None
    image = base64.b64encode(plot.read_bytes()).decode() if plot is not None and plot.is_file() else None
    rows = [(title(name), old, new, _change(report, name)) for name, old, new in before_after_rows(report)]
    majority = majority_not_passed(report)
    return render(
        "notebook.html.j2", report=report, rows=rows, image=image, majority=majority, folder=folder, bold=_bold
    )


def _change(report: RunReport, name: str) -> str:
    return change_text(report.before.get(name), report.after.get(name), name).replace("-", MINUS)


def _bold(words: Markup) -> Markup:
    """Paragraphs of Markdown whose values are escaped for HTML, as HTML."""
    strong = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(words).strip())
    return Markup("").join(Markup(f"<p>{part}</p>") for part in re.split(r"\n\s*\n", strong))
