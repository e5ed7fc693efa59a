"""Tuning: a recipe's keys varied over short trials, compared on the validation split."""

from domainclip.reports.schema.tuning import TrialRecord
from domainclip.tune.run import TuningOutcome, run_tuning
from domainclip.tune.space import Dimension, Space

__all__ = ["Dimension", "Space", "TrialRecord", "TuningOutcome", "run_tuning"]
