"""What a user sees of a run: report.html, one file that opens anywhere and needs no network."""

from cmtvision.report.page import write_report

__all__ = ["write_report"]
