"""Checks of data, outputs, losses and training; each returns a list of findings."""
