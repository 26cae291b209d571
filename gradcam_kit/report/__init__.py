"""Write the report of a run, a single HTML page."""

from gradcam_kit.report.page import is_current, write_report

__all__ = ["is_current", "write_report"]
