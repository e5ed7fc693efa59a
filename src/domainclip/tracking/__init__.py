"""Listeners of a run's events: what becomes of them in files and on the terminal."""

from domainclip.tracking.console import ConsoleListener
from domainclip.tracking.jsonl import MetricsFile, read_metrics

__all__ = ["ConsoleListener", "MetricsFile", "read_metrics"]
