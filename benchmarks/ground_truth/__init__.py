"""Networks and data whose right answer is known, which show where each method finds it and where it fails."""

from benchmarks.ground_truth.command import run

__all__ = ["run"]
