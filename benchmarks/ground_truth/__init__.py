"""Networks and data whose right answer is known: where each method finds it, and where it fails."""

from benchmarks.ground_truth.command import rewrite, run

__all__ = ["rewrite", "run"]
