"""Who listens to a run besides its own files and the console: people, trackers, the live page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.tracking_settings import TrackingSettings
from domainclip.devices.power import power_sources
from domainclip.errors import Interrupted
from domainclip.events import Emitter, RunEnded, StopRun
from domainclip.pipelines.run_folder import RunFolder
from domainclip.tracking import ProgressFile
from domainclip.tracking.energy import EnergyListener, energy_of
from domainclip.tracking.exporters import Exporter, exporting, make_exporters
from domainclip.tracking.notifications import Target, notifications, targets_of
from domainclip.tracking.prometheus import prometheus


@dataclass(frozen=True)
class RunListeners:
    """Those whom a recipe names, looked at before any work.

    Attributes:
        settings: The keys of the recipe.
        targets: Of ``notify``.
        exporters: Of ``report_to``.
    """

    settings: TrackingSettings
    targets: Sequence[Target]
    exporters: Mapping[str, Exporter]

    @classmethod
    def of(cls, recipe: CLIPFinetuningConfig) -> RunListeners:
        """The listeners of a recipe.

        Args:
            recipe: Of the run.

        Returns:
            The listeners, none of which listens yet.

        Raises:
            ConfigurationError: A name is unknown, or what one of them needs is not there.
            MissingExtraError: A package is not installed.
        """
        settings = recipe.group(TrackingSettings)
        if settings.dashboard:
            import domainclip.tracking.live_page.server  # noqa: F401 - without its packages it is no module
        exporters = make_exporters(settings.report_to, recipe.plugins)
        return cls(settings, targets_of(settings.notify), exporters)

    @contextmanager
    def listening(
        self, folder: RunFolder, emitter: Emitter, console: Console, device: torch.device
    ) -> Iterator[EnergyListener]:
        """Within it they hear of a run that has begun, and at last how it has ended.

        Args:
            folder: Of the run.
            emitter: Of the run.
            console: Where the live page's address is shown.
            device: That trains.

        Yields:
            What knows the energy of the training, once that is over.
        """
        with ExitStack() as held:
            sources, reasons = power_sources(device.type, device.index or 0)
            energy = held.enter_context(energy_of(sources, reasons, emitter.emit, folder.metrics))
            if sources:
                emitter.add(energy)
            emitter.add(ProgressFile(folder.progress, emitter.warn))
            held.enter_context(exporting(self.exporters, folder.path, folder.exports, emitter))
            if self.targets:
                name, level = folder.path.resolve().name, self.settings.notify_level
                told = notifications(self.targets, level, folder.notifications, name, emitter.warn)
                emitter.add(held.enter_context(told))
            if self.settings.dashboard:
                from domainclip.tracking.live_page.server import served_beside

                def show(text: str) -> None:
                    console.print(f"Live page: {text}", markup=False, highlight=False)

                held.enter_context(served_beside(folder.path, show))
            held.enter_context(_told_how_it_ends(folder, emitter))
            yield energy

    @contextmanager
    def scraped(self, folder: RunFolder, emitter: Emitter) -> Iterator[None]:
        """Within it Prometheus finds the run's figures, from its first moment on: a port that is taken is said at once.

        Args:
            folder: Of the run.
            emitter: Of the run.

        Yields:
            Nothing.

        Raises:
            ConfigurationError: The port is taken, or the file cannot be written.
        """
        with prometheus(folder.path, self.settings, emitter):
            yield


@contextmanager
def _told_how_it_ends(folder: RunFolder, emitter: Emitter) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt | StopRun)
        text = str(error) or type(error).__name__
        outcome: Literal["interrupted", "failed"] = "interrupted" if stopped else "failed"
        emitter.emit(RunEnded(outcome=outcome, text=text, error=type(error).__name__))
        raise
    emitter.emit(RunEnded(outcome="finished", text=f"The report is {folder.report}", report=str(folder.report)))
