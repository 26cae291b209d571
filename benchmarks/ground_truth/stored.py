"""The stored results of a run for sentences; a sentence that calls a method better needs the test that supports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from typing import Any

from benchmarks.ground_truth.scoring import SURE
from benchmarks.ground_truth.table import p_of
from benchmarks.ground_truth.uncertainty import Pair

LEVEL = 0.05


class UnsupportedError(Exception):
    """The stored numbers do not support a sentence."""


@dataclass(frozen=True)
class Stored:
    """The JSON of a run.

    Attributes:
        results: the content of `ground-truth.json`.
    """

    results: Mapping[str, Any]

    def mean(self, column: str, row: str) -> str:
        """Return a mean as the table shows it."""
        return f"{self.value(column, row):.2f}"

    def interval(self, column: str, row: str) -> str:
        """Return a mean with its interval."""
        cell = self._cell(column, row)
        self.require(cell["low"] is not None, f"{column}: {row} has no interval")
        return _with_interval(cell["mean"], cell["low"], cell["high"])

    def all_empty(self, column: str, row: str) -> bool:
        """Whether all maps are empty."""
        return bool(self._column(column)["scores"][row]["n"] == 0)

    def better(self, column: str, better: str, worse: str) -> str:
        """Return how much better one row is than another, with the interval.

        Raises:
            UnsupportedError: the difference is not positive, not beyond chance, with or without empty maps, or
                networks disagree about its sign.
        """
        pair = self._pair(column, better, worse)
        shown = pair["n"] > 0 and pair["p_holm"] < LEVEL and min(pair["low"], pair["low_with_empty"]) > 0
        if not shown or (pair["networks"] > 1 and pair["agreeing"] < pair["observations"]):
            raise UnsupportedError(f"{column}: {better} is not shown to be better than {worse}: {pair}")
        return _with_interval(pair["difference"], pair["low"], pair["high"])

    def unclear(self, column: str, one: str, other: str) -> str:
        """Return the difference of two rows that are not shown to differ, with interval and p.

        Raises:
            UnsupportedError: they are shown to differ, or only the correction for many pairs hides the difference.
        """
        pair = self._pair(column, one, other)
        if pair["low"] is None or pair["high"] is None or not pair["low"] < 0 < pair["high"]:
            raise UnsupportedError(f"{column}: the interval of {one} and {other} does not have 0 inside: {pair}")
        return self.not_shown(column, one, other)

    def not_shown(self, column: str, better: str, worse: str) -> str:
        """Return a difference of two rows that is not significant, with interval and p; the interval may exclude 0.

        Raises:
            UnsupportedError: the difference is significant.
        """
        pair = self._pair(column, better, worse)
        if pair["p_holm"] is None or pair["p_holm"] < LEVEL:
            raise UnsupportedError(f"{column}: {better} and {worse} do differ, or nothing is known: {pair}")
        said = _with_interval(pair["difference"], pair["low"], pair["high"])
        return f"{said}, p = {p_of(pair['p_holm'])} after Holm"

    def in_all(self, column: str, better: str, worse: str) -> str:
        """Return the mean difference if it has the same sign in all observations, which are too few for a test.

        Raises:
            UnsupportedError: the signs differ, or a test already shows the difference.
        """
        pair = self._pair(column, better, worse)
        if pair["agreeing"] < pair["observations"] or pair["p_holm"] < LEVEL:
            raise UnsupportedError(f"{column}: {better} is not above {worse} in all alone: {pair}")
        return f"{pair['difference']:.2f}"

    def pictures(self, column: str, better: str, worse: str) -> int:
        """Return the number of pictures of a pair."""
        return int(self._pair(column, better, worse)["n"])

    def networks(self, column: str) -> int:
        """Return the number of networks that count."""
        return int(next(iter(self._column(column)["scores"].values()))["networks"])

    def trained(self, column: str) -> int:
        """Return the number of trained networks."""
        return self.networks(column) + len(self._column(column)["left out"])

    def note(self, column: str, *names: str) -> float:
        """Return the mean over networks of the note under these names, each nested in the one before."""
        values = [float(reduce(getitem, names, one)) for one in self._column(column)["notes"]]
        return sum(values) / len(values)

    def draws(self, column: str, row: str) -> tuple[float, float]:
        """Return the smallest and the largest mean of any draw on any network."""
        notes = self._column(column)["notes"]
        means = [mean for one in notes for mean in one["draws"][row] if mean is not None]
        return min(means), max(means)

    def by_network(self, column: str, row: str) -> Sequence[float]:
        """Return the mean of each network."""
        found: Sequence[float] = self._column(column)["by network"][row]
        return found

    def require(self, condition: bool, said: str) -> None:
        """Check a condition that no test of two rows covers.

        Raises:
            UnsupportedError: the condition does not hold.
        """
        if not condition:
            raise UnsupportedError(said)

    def value(self, column: str, row: str) -> float:
        """Return a mean as a number."""
        return float(self._cell(column, row)["mean"])

    def low(self, column: str, row: str) -> float:
        """Return the lower end of the interval of a mean."""
        return float(self._cell(column, row)["low"])

    def _column(self, column: str) -> Mapping[str, Any]:
        if column not in self.results["columns"]:
            raise UnsupportedError(f"{column} was not measured")
        found: Mapping[str, Any] = self.results["columns"][column]
        if min(found["accuracy"], default=1.0) < SURE:
            raise UnsupportedError(f"{column}: networks do not name their pictures: accuracy {found['accuracy']}")
        return found

    def _cell(self, column: str, row: str) -> Mapping[str, Any]:
        cell: Mapping[str, Any] = self._column(column)["scores"][row]
        if cell["n"] == 0:
            raise UnsupportedError(f"{column}: all maps of {row} are empty")
        return cell

    def _pair(self, column: str, better: str, worse: str) -> Mapping[str, Any]:
        self._column(column)
        for pair in self.results["pairs"]:
            if (pair["column"], pair["better"], pair["worse"]) == (column, better, worse):
                found: Mapping[str, Any] = pair
                return found
        raise UnsupportedError(f"{column}: {better} and {worse} were not compared")


@dataclass(frozen=True)
class Asked(Stored):
    """Records the pairs that sentences use; all numbers are 0."""

    results: Mapping[str, Any] = field(default_factory=dict)
    pairs: dict[Pair, None] = field(default_factory=dict)

    def all_empty(self, column: str, row: str) -> bool:
        """Return True, because nothing is measured yet."""
        return True

    def better(self, column: str, better: str, worse: str) -> str:
        """Record the pair."""
        self._pair(column, better, worse)
        return ""

    def unclear(self, column: str, one: str, other: str) -> str:
        """Record the pair."""
        return self.better(column, one, other)

    def not_shown(self, column: str, better: str, worse: str) -> str:
        """Record the pair."""
        return self.better(column, better, worse)

    def in_all(self, column: str, better: str, worse: str) -> str:
        """Record the pair."""
        return self.better(column, better, worse)

    def networks(self, column: str) -> int:
        """Return 0, because nothing is measured yet."""
        return 0

    def trained(self, column: str) -> int:
        """Return 0, because nothing is measured yet."""
        return 0

    def note(self, column: str, *names: str) -> float:
        """Return 0, because nothing is measured yet."""
        return 0.0

    def draws(self, column: str, row: str) -> tuple[float, float]:
        """Return zeros, because nothing is measured yet."""
        return 0.0, 0.0

    def by_network(self, column: str, row: str) -> Sequence[float]:
        """Return zeros, because nothing is measured yet."""
        return (0.0,)

    def require(self, condition: bool, said: str) -> None:
        """Do nothing, because nothing is measured yet."""

    def _cell(self, column: str, row: str) -> Mapping[str, Any]:
        return {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 1, "empty": 0}

    def _pair(self, column: str, better: str, worse: str) -> Mapping[str, Any]:
        self.pairs[Pair(column, better, worse)] = None
        return {"n": 0}


def _with_interval(mean: float, low: float, high: float) -> str:
    # adding 0 turns a rounded -0.0 into 0.0
    said = [f"{round(number, 2) + 0.0:.2f}" for number in (mean, low, high)]
    return f"{said[0]} [{said[1]}, {said[2]}]"
