"""The types of what is reported: ``RunReport`` is the schema of ``report.json``, ``ComparisonReport`` that of
``compare.json``, ``AlignmentReport`` that of ``alignment.json``, ``TuningReport`` that of ``tuning.json``,
``EvaluationFile`` and ``ResolutionsReport`` those of what ``evaluate`` gives without and with ``--resolutions``."""

from domainclip.reports.schema.alignment import AlignmentReport
from domainclip.reports.schema.comparison import ComparisonReport
from domainclip.reports.schema.evaluation import EvaluationFile
from domainclip.reports.schema.resolutions import ResolutionsReport
from domainclip.reports.schema.run import RunFacts, RunReport
from domainclip.reports.schema.tuning import TuningReport

__all__ = [
    "AlignmentReport",
    "ComparisonReport",
    "EvaluationFile",
    "ResolutionsReport",
    "RunFacts",
    "RunReport",
    "TuningReport",
]
