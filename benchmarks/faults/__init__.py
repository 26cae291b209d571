"""The planted faults of the diagnostics with the findings about each, for the tests and for a table in the docs."""

from benchmarks.faults import data, loop, numbers, parts, units
from benchmarks.faults.fault import FAULTS, Fault

__all__ = ["FAULTS", "Fault", "data", "loop", "numbers", "parts", "units"]
