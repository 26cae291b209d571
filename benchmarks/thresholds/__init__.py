"""Measure the statistics of healthy models, from which the limits of the diagnostics were chosen."""
