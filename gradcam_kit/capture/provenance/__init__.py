"""Trace where in the images the values of a layer come from, operation by operation instead of guessing from shapes."""
