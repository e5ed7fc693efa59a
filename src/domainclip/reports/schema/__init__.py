"""The types of what is reported: ``RunReport`` is the schema of ``report.json``, ``ComparisonReport`` that of
``compare.json``, ``AlignmentReport`` that of ``alignment.json``."""

from domainclip.reports.schema.alignment import AlignmentReport
from domainclip.reports.schema.comparison import ComparisonReport
from domainclip.reports.schema.run import RunFacts, RunReport

__all__ = ["AlignmentReport", "ComparisonReport", "RunFacts", "RunReport"]
