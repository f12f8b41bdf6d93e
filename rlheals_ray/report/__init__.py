"""The report: from a study's tables to findings in words and one self-contained HTML page."""

from rlheals_ray.report.findings import findings_of
from rlheals_ray.report.page import build_report
from rlheals_ray.report.words import Finding

__all__ = ["Finding", "build_report", "findings_of"]
