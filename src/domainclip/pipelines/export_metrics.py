"""The use case "export metrics": trackers get what they have not had of runs that are over."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from domainclip.errors import CLIPFinetuningError, ConfigurationError
from domainclip.pipelines.output_lock import locked_output
from domainclip.pipelines.run_folder import RunFolder
from domainclip.tracking.exporters import Exporter, make_exporters, replay
from domainclip.tracking.exporters.live import PULLED

log = logging.getLogger(__name__)


def export_metrics(runs: Sequence[str | Path], name: str, plugins: Sequence[str] = ()) -> dict[Path, int]:
    """Send the figures of runs to a tracker. What it has had already, be it while the run went on, is not sent again.

    Args:
        runs: Folders of runs.
        name: Of the tracker, as ``report_to`` has it.
        plugins: Modules that may register it.

    Returns:
        Rows that were sent, by folder.

    Raises:
        ConfigurationError: A folder holds no run, or a run goes on; or the tracker cannot be reached.
        MissingExtraError: The tracker's package is not installed.
        DamagedFileError: ``exports.json`` of a run is damaged.
    """
    if name == PULLED:
        raise ConfigurationError(
            "Prometheus takes no figures of the past: it fetches those of a training that goes on (metrics_port). Name "
            "another tracker"
        )
    make_exporters([name], plugins)
    folders = [RunFolder(run) for run in runs]
    for folder in folders:
        if not folder.metrics.is_file():
            raise ConfigurationError(
                f"{folder.path} holds no metrics.jsonl, so that no run is there: name a run's folder"
            )
    return {folder.path: _export(folder, name, make_exporters([name])[name]) for folder in folders}


def _export(folder: RunFolder, name: str, exporter: Exporter) -> int:
    with locked_output(folder.path, "The run's folder", log.warning):
        try:
            return replay(folder.path, folder.exports, name, exporter)
        except CLIPFinetuningError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"The figures of {folder.path} were not all sent to {name}: {type(error).__name__}: {error!s:.500}. "
                "Once that is mended, the same command goes on where it stopped"
            ) from error
        finally:
            folder.end()  # what an exporter has written there is the run's
