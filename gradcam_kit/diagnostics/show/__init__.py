"""Plots and pages of diagnostics."""
