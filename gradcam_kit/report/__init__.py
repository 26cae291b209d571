"""A run becomes one page that people look at."""

from gradcam_kit.report.page import is_current, write_report

__all__ = ["is_current", "write_report"]
