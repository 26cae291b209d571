"""Test where each method finds the right answer, and where it fails, on networks and data whose answer is known."""

from benchmarks.ground_truth.command import rewrite, run

__all__ = ["rewrite", "run"]
