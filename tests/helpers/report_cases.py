"""Reports of runs that nobody ran."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainclip.evaluation.protocols import EvaluationResult
from domainclip.reports.run_report import write_report
from domainclip.reports.schema import RunFacts, RunReport


def write_run(folder: Path, run: Mapping[str, Any]) -> RunReport:
    """The report of plain values; ``before`` and ``after`` may be flat numbers, or as a file keeps them."""
    facts = {key: value for key, value in run.items() if key not in ("before", "after", "history", "read")}
    results = [result_of(run.get(when)) for when in ("before", "after")]
    return write_report(folder, RunFacts.from_values(facts), *results, run.get("history", ()), run.get("read"))


def result_of(part: EvaluationResult | Mapping[str, Any] | None) -> EvaluationResult | None:
    """An evaluation from flat numbers, or from how a file keeps it."""
    if part is None or isinstance(part, EvaluationResult):
        return part
    return EvaluationResult.of(part["metrics"], part["details"]) if "metrics" in part else EvaluationResult.of(part)


def pages(folder: Path) -> str:
    """What a person can read of a run: the report and its details."""
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in ("report.md", "report_details.md"))
