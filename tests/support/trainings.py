"""Small trainings for the diagnostics, those of the table of planted faults."""

from benchmarks.faults.trainings import batches, found, he, mlp, train

__all__ = ["batches", "found", "he", "mlp", "train"]
