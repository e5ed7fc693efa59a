"""TensorBoard: event files in ``tensorboard/`` of the run's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from domainclip.tracking.exporters.exporter import EXPORTERS, Exporter, Figures, Result, RunFacts, require


@EXPORTERS.register("tensorboard")
class TensorBoardExporter(Exporter):
    """Scalars by the names of ``metrics.jsonl``, which TensorBoard keeps as float32. A run that goes on adds a file.

    Raises:
        MissingExtraError: The package ``tensorboard`` is not installed.
    """

    destination = "tensorboard/"

    def __init__(self) -> None:
        require("tensorboard.backend.event_processing.event_file_loader", "tensorboard")
        self._writer: Any = None

    def start(self, run: RunFacts) -> None:
        """Open a new event file.

        Args:
            run: Its recipe goes into the first one.
        """
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is not None:
            self._writer.close()
        self._folder = run.folder / "tensorboard"
        is_first = not any(self._folder.glob("events.*"))
        # It flushes when it is told to: without a limit of its own no figure waits for another one.
        self._writer = SummaryWriter(str(self._folder), flush_secs=86400)
        if is_first:
            recipe = json.dumps(dict(run.recipe), indent=2, default=str, sort_keys=True)
            self._writer.add_text("recipe", f"```json\n{recipe}\n```", 0)

    def held(self, rows: Sequence[Figures]) -> set[tuple[int, str]]:
        """Read the event files.

        Args:
            rows: Those in doubt.

        Returns:
            Step and name of every scalar.
        """
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

        return {
            (event.step, value.tag)
            for path in sorted(self._folder.glob("events.*"))
            for event in LegacyEventFileLoader(str(path)).Load()
            for value in event.summary.value
            if value.HasField("simple_value")
        }

    def log(self, rows: Sequence[Figures]) -> None:
        """Write figures, and see that they are in the file.

        Args:
            rows: Those.
        """
        for row in rows:
            for name, value in row.values.items():
                self._writer.add_scalar(name, value, row.step)
            for name, text in row.texts.items():
                self._writer.add_text(name, text, row.step)
        self._writer.flush()

    def finish(self, result: Result) -> None:
        """Write down the verdict and close the file.

        Args:
            result: Of the run.
        """
        self._writer.add_text("result", " ".join(filter(None, (result.outcome, result.verdict, result.text))))
        self._writer.close()
        self._writer = None
