"""Measure how far the statistics of healthy models stay from the limits of the diagnostics."""
