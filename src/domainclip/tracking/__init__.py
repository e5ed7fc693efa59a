"""Listeners of a run's events: what becomes of them in files and on the terminal."""

from domainclip.tracking.console import ConsoleListener
from domainclip.tracking.jsonl import RunFiles, read_rows
from domainclip.tracking.notebook import notebook_display, usual_console
from domainclip.tracking.progress_file import ProgressFile

__all__ = ["ConsoleListener", "ProgressFile", "RunFiles", "notebook_display", "read_rows", "usual_console"]
