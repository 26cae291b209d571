"""Plots and HTML pages of diagnostics."""
