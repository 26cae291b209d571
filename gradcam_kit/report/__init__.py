"""A run becomes one page that people look at."""

from gradcam_kit.report.page import write_report

__all__ = ["write_report"]
