"""Planted faults with the finding that the diagnostics must report, for the tests and for a table in the docs."""

from benchmarks.faults import data, loop, numbers, parts, units
from benchmarks.faults.fault import FAULTS, Fault

__all__ = ["FAULTS", "Fault", "data", "loop", "numbers", "parts", "units"]
