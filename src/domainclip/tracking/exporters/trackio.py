"""Trackio: a project on this machine, or the place that its environment names."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from domainclip.tracking.exporters.exporter import EXPORTERS, Exporter, Figures, Result, RunFacts, require

PROJECT = "domainclip"
"""Where ``TRACKIO_PROJECT`` says nothing."""


@EXPORTERS.register("trackio")
class TrackioExporter(Exporter):
    """Figures by the names of ``metrics.jsonl``, milestones as alerts too, the recipe as configuration.

    Trackio knows a run by its name, which is here the folder's with a piece of the run's id.

    Raises:
        MissingExtraError: The package ``trackio`` is not installed.
    """

    keeps_at_once = False  # its own thread writes, half a second later

    def __init__(self) -> None:
        self._trackio = require("trackio", "trackio")
        self._project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        where = os.environ.get("TRACKIO_SPACE_ID") or str(self._trackio.utils.TRACKIO_DIR)
        self.destination = f"{where} {self._project}"
        self._run: Any = None

    def start(self, run: RunFacts) -> None:
        """Begin the run, or go on with the one of this name.

        Args:
            run: Its recipe becomes the configuration.
        """
        self._name = f"{run.name}-{run.id[:8]}"
        with redirect_stdout(sys.stderr):  # standard output is for what the user has asked for
            if self._run is not None:
                self._run.finish()
            self._run = self._trackio.init(
                project=self._project,
                name=self._name,
                config=dict(run.recipe),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def held(self, rows: Sequence[Figures]) -> set[tuple[int, str]]:
        """Read the project's file.

        Args:
            rows: Those in doubt.

        Returns:
            Step and name of what is there.
        """
        from trackio.sqlite_storage import SQLiteStorage

        logged = SQLiteStorage.get_logs(self._project, self._name)
        return {(row["step"], name) for row in logged for name in row}

    def log(self, rows: Sequence[Figures]) -> None:
        """Hand figures to Trackio.

        Args:
            rows: Those.
        """
        for row in rows:
            self._run.log(dict(row.values), step=row.step)
            for name, text in row.texts.items():
                self._run.alert(title=name, text=text, level=self._level(text))

    def _level(self, text: str) -> Any:
        named = text.partition(":")[0]
        levels = self._trackio.AlertLevel
        return {"warning": levels.WARN, "error": levels.ERROR}.get(named, levels.INFO)

    def finish(self, result: Result) -> None:
        """End the run; what waits is written.

        Args:
            result: Of the run.
        """
        level = {"finished": "INFO", "interrupted": "WARN", "failed": "ERROR"}[result.outcome]
        text = " ".join(filter(None, (result.verdict, result.text)))
        with redirect_stdout(sys.stderr):
            self._run.alert(title=result.outcome, text=text, level=getattr(self._trackio.AlertLevel, level))
            self._run.finish()
