"""Experiment trackers, by name: what becomes of a run's figures in the tools that its owner uses already."""

from domainclip.tracking.exporters import mlflow, tensorboard, trackio, wandb  # noqa: F401 - they register themselves
from domainclip.tracking.exporters.exporter import EXPORTERS, Exporter, Figures, Result, RunFacts
from domainclip.tracking.exporters.live import exporting, make_exporters, replay

__all__ = ["EXPORTERS", "Exporter", "Figures", "Result", "RunFacts", "exporting", "make_exporters", "replay"]
