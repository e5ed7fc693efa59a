"""Tuning: a recipe's keys varied over short trials, compared on the validation split.

Names are loaded when they are first used: what can be searched is said without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from domainclip.reports.schema.tuning import TrialRecord
    from domainclip.tune.run import TuningOutcome, run_tuning
    from domainclip.tune.space import Dimension, Space

__all__ = ["Dimension", "Space", "TrialRecord", "TuningOutcome", "run_tuning"]

_HOME = {
    "Dimension": "tune.space",
    "Space": "tune.space",
    "TrialRecord": "reports.schema.tuning",
    "TuningOutcome": "tune.run",
    "run_tuning": "tune.run",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _HOME:
            return getattr(import_module(f"domainclip.{_HOME[name]}"), name)
        raise AttributeError(f"module 'domainclip.tune' has no attribute {name!r}")
