"""What there is to send of a run, read from its own files: live export and replay read the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from domainclip.files import read_checked
from domainclip.tracking.exporters.exporter import Figures, Result, RunFacts
from domainclip.tracking.jsonl import Row
from domainclip.tracking.tail import Tail

OUTCOMES = ("finished", "interrupted", "failed")


class RunReader:
    """The figures of a run, in the order of its files.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[tuple[Tail, Callable[[Row], Figures]]] = [
            (Tail(folder / "metrics.jsonl"), _of_metrics),
            (Tail(folder / "milestones.jsonl"), _of_milestone),
        ]

    def facts(self, run_id: str) -> RunFacts:
        """What a tracker is told at the begin.

        Args:
            run_id: From ``exports.json``.

        Returns:
            The facts.

        Raises:
            OSError: ``recipe.yaml`` cannot be read.
            DamagedFileError: It is not as it was written.
        """
        recipe = self.folder / "recipe.yaml"
        content = yaml.safe_load(read_checked(recipe)) if recipe.is_file() else {}
        return RunFacts(run_id, self.folder.resolve().name, self.folder, content or {})

    def read(self) -> list[Figures]:
        """Read what is new.

        Returns:
            Rows; those of a file that was replaced come again.

        Raises:
            OSError: A file cannot be read.
        """
        return [row for tail, made_of in self._files for row in map(made_of, tail.read()[1]) if row.values]

    def of_report(self) -> list[Figures]:
        """The figures of the report: before and after the training, at its last step.

        Returns:
            One row, or none where there is no report.
        """
        report = self._report()
        if report is None:
            return []
        figures = {
            f"{when}_{name}": value for when in ("before", "after") for name, value in (report.get(when) or {}).items()
        }
        row = _figures(int(report["training"]["steps"]), figures)
        return [row] if row.values else []

    def result(self) -> Result:
        """What the run, which nobody trains any more, has come to.

        Returns:
            By ``progress.json`` and ``report.json``; interrupted, where it has ended without a word.
        """
        progress = _json(self.folder / "progress.json") or {}
        state = progress.get("state")
        if state not in OUTCOMES:
            return Result("interrupted", "The run has ended without a word: it was killed, or its machine went down")
        report = self._report() if state == "finished" else None
        verdict = (report or {}).get("verdict") or {}
        said = f"{verdict.get('outcome', '')} by {verdict.get('metric', '')}" if verdict else ""
        return Result(state, str(progress.get("text", "")), said)

    def _report(self) -> dict[str, Any] | None:
        return _json(self.folder / "report.json")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _of_metrics(row: Row) -> Figures:
    return _figures(row["step"], {name: value for name, value in row.items() if name != "step"})


def _of_milestone(row: Row) -> Figures:
    name = f"milestone_{row.get('name')}"
    text = " ".join(str(row[key]) for key in ("text", "advice") if row.get(key))
    return Figures(row["step"], name, {name: 1.0}, {name: f"{row.get('level')}: {text}"})


def _figures(step: int, row: dict[str, Any]) -> Figures:
    values = {
        name: float(value) for name, value in row.items() if isinstance(value, int | float) and math.isfinite(value)
    }
    return Figures(step, ",".join(sorted(row)), values)
