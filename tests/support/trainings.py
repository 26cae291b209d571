"""Small trainings for the diagnostics, those of the table of planted faults."""

from benchmarks.faults.trainings import Functional, batches, found, he, mlp, train

__all__ = ["Functional", "batches", "found", "he", "mlp", "train"]
