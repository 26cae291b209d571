"""What is stored of a run, as sentences need it: a sentence that says better asks for the test that supports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from typing import Any

from benchmarks.ground_truth.bootstrap import Pair

LEVEL = 0.05


class UnsupportedError(Exception):
    """The stored numbers do not support what a sentence says."""


@dataclass(frozen=True)
class Stored:
    """The JSON of a run.

    Attributes:
        results: as `ground-truth.json` has it.
    """

    results: Mapping[str, Any]

    def mean(self, column: str, row: str) -> str:
        """A mean, as the table shows it."""
        return f"{self._cell(column, row)['mean']:.2f}"

    def range(self, columns: tuple[str, ...], row: str) -> str:
        """The smallest and the largest mean of some columns."""
        means = sorted(self._cell(column, row)["mean"] for column in columns)
        low, high = f"{means[0]:.2f}", f"{means[-1]:.2f}"
        return low if low == high else f"{low} to {high}"

    def interval(self, column: str, row: str) -> str:
        """A mean with its interval."""
        cell = self._cell(column, row)
        return f"{cell['mean']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"

    def empty(self, column: str, row: str) -> str:
        """The share of empty maps, in percent."""
        cell = self._column(column)["scores"][row]
        return f"{100 * cell['empty'] / (cell['n'] + cell['empty']):.0f} %"

    def better(self, column: str, better: str, worse: str) -> str:
        """How much better one row is than another, with the interval.

        Raises:
            UnsupportedError: the difference is not positive, or not beyond chance, with or without empty maps.
        """
        pair = self._pair(column, better, worse)
        if pair["n"] == 0 or pair["p_holm"] >= LEVEL or min(pair["low"], pair["low_with_empty"]) <= 0:
            raise UnsupportedError(f"{column}: {better} is not shown to be better than {worse}: {pair}")
        return f"{pair['difference']:.2f} [{pair['low']:.2f}, {pair['high']:.2f}]"

    def unclear(self, column: str, one: str, other: str) -> str:
        """The difference of two rows of which neither is shown to be better, with the interval.

        Raises:
            UnsupportedError: one of them is.
        """
        pair = self._pair(column, one, other)
        if pair["p_holm"] < LEVEL:
            raise UnsupportedError(f"{column}: {one} and {other} do differ: {pair}")
        return f"{pair['difference']:.2f} [{pair['low']:.2f}, {pair['high']:.2f}]"

    def agreeing(self, column: str, better: str, worse: str) -> str:
        """In how many networks the difference has this sign."""
        pair = self._pair(column, better, worse)
        return f"{pair['agreeing']} of {pair['networks']}"

    def networks(self, column: str) -> int:
        """How many were trained or drawn."""
        return int(next(iter(self._column(column)["scores"].values()))["networks"])

    def note(self, column: str, *names: str) -> float:
        """The mean over networks of what is noted under these names, each within the one before."""
        values = [float(reduce(getitem, names, one)) for one in self._column(column)["notes"]]
        return sum(values) / len(values)

    def draws(self, column: str, row: str) -> tuple[float, float]:
        """The smallest and the largest mean of any draw on any network."""
        notes = self._column(column)["notes"]
        means = [mean for one in notes for mean in one["draws"][row] if mean is not None]
        return min(means), max(means)

    def require(self, condition: bool, said: str) -> None:
        """Check what no test of two rows says.

        Raises:
            UnsupportedError: it does not hold.
        """
        if not condition:
            raise UnsupportedError(said)

    def value(self, column: str, row: str) -> float:
        """A mean as a number."""
        return float(self._cell(column, row)["mean"])

    def _column(self, column: str) -> Mapping[str, Any]:
        if column not in self.results["columns"]:
            raise UnsupportedError(f"{column} was not measured")
        found: Mapping[str, Any] = self.results["columns"][column]
        return found

    def _cell(self, column: str, row: str) -> Mapping[str, Any]:
        cell: Mapping[str, Any] = self._column(column)["scores"][row]
        if cell["n"] == 0:
            raise UnsupportedError(f"{column}: all maps of {row} are empty")
        return cell

    def _pair(self, column: str, better: str, worse: str) -> Mapping[str, Any]:
        for pair in self.results["pairs"]:
            if (pair["column"], pair["better"], pair["worse"]) == (column, better, worse):
                found: Mapping[str, Any] = pair
                return found
        raise UnsupportedError(f"{column}: {better} and {worse} were not compared")


@dataclass(frozen=True)
class Asked(Stored):
    """Notes which pairs sentences ask for; all numbers are 0."""

    results: Mapping[str, Any] = field(default_factory=dict)
    pairs: dict[Pair, None] = field(default_factory=dict)

    def empty(self, column: str, row: str) -> str:
        """Nothing is known."""
        return "0 %"

    def better(self, column: str, better: str, worse: str) -> str:
        """Note the pair."""
        self._pair(column, better, worse)
        return ""

    def unclear(self, column: str, one: str, other: str) -> str:
        """Note the pair."""
        return self.better(column, one, other)

    def networks(self, column: str) -> int:
        """Nothing is known."""
        return 0

    def note(self, column: str, *names: str) -> float:
        """Nothing is known."""
        return 0.0

    def draws(self, column: str, row: str) -> tuple[float, float]:
        """Nothing is known."""
        return 0.0, 0.0

    def require(self, condition: bool, said: str) -> None:
        """Nothing is known."""

    def _cell(self, column: str, row: str) -> Mapping[str, Any]:
        return {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 1, "empty": 0}

    def _pair(self, column: str, better: str, worse: str) -> Mapping[str, Any]:
        self.pairs[Pair(column, better, worse)] = None
        return {"agreeing": 0, "networks": 0}
