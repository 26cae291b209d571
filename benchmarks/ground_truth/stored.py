"""Read stored results for sentences, and raise an error if no test supports a claim that a method is better."""

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
        """Whether all maps of a row are empty."""
        return bool(self._column(column)["scores"][row]["n"] == 0)

    def better(self, column: str, better: str, worse: str) -> str:
        """Return how much better a row is than another, with the interval, and how many networks agree if not all do.

        Raises:
            UnsupportedError: the difference is not positive or not significant, with or without empty maps, or at
                least half of the networks disagree about its sign.
        """
        return self._shown(self._pair(column, better, worse))

    def verdict(self, column: str, better: str, worse: str, margin: float = 0.0) -> tuple[bool, str]:
        """Return whether one row is shown to be better than another, and the difference as in `better` or `not_shown`.

        With a margin, return whether the row is shown to be worse by less than the margin.

        Raises:
            UnsupportedError: the other row is better, or tests contradict each other.
        """
        pair = self._pair(column, better, worse, margin)
        try:
            return True, self._shown(pair)
        except UnsupportedError:
            return False, self._open(pair)

    def unclear(self, column: str, one: str, other: str) -> str:
        """Return the difference of two rows that are not shown to differ, with interval and p.

        Raises:
            UnsupportedError: the rows differ significantly, or would without the correction for many pairs.
        """
        pair = self._pair(column, one, other)
        if pair["low"] is None or pair["high"] is None or not pair["low"] < 0 < pair["high"]:
            raise UnsupportedError(f"{column}: the interval of {one} - {other} does not contain 0: {pair}")
        return self.not_shown(column, one, other)

    def not_shown(self, column: str, better: str, worse: str) -> str:
        """Return a difference of two rows that is not significant, with interval and p; the interval may exclude 0.

        Raises:
            UnsupportedError: the difference is significant.
        """
        return self._open(self._pair(column, better, worse))

    def in_all(self, column: str, better: str, worse: str) -> str:
        """Return the mean difference if it is positive in all observations, which are too few for a test.

        Raises:
            UnsupportedError: an observation disagrees, or a test already shows the difference.
        """
        pair = self._pair(column, better, worse)
        if pair["agreeing"] < pair["observations"] or pair["p_holm"] < LEVEL:
            raise UnsupportedError(
                f"{column}: {better} is not above {worse} in all observations, or a test shows it: {pair}"
            )
        return f"{pair['difference']:.2f}"

    def pictures(self, column: str, better: str, worse: str) -> int:
        """Return the number of pictures of a pair."""
        return int(self._pair(column, better, worse)["n"])

    def networks(self, column: str) -> int:
        """Return the number of included networks."""
        return int(next(iter(self._column(column)["scores"].values()))["networks"])

    def trained(self, column: str) -> int:
        """Return the number of trained networks, those left out included."""
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
        """Raise an error unless a condition holds, for conditions that no test of two rows covers.

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
            raise UnsupportedError(
                f"{column}: networks do not name their pictures correctly: accuracies {found['accuracy']}"
            )
        return found

    def _cell(self, column: str, row: str) -> Mapping[str, Any]:
        cell: Mapping[str, Any] = self._column(column)["scores"][row]
        if cell["n"] == 0:
            raise UnsupportedError(f"{column}: all maps of {row} are empty")
        return cell

    def _pair(self, column: str, better: str, worse: str, margin: float = 0.0) -> Mapping[str, Any]:
        self._column(column)
        for pair in self.results["pairs"]:
            if (pair["column"], pair["better"], pair["worse"], pair["margin"]) == (column, better, worse, margin):
                found: Mapping[str, Any] = pair
                return found
        raise UnsupportedError(f"{column}: {better} and {worse} were not compared")

    @staticmethod
    def _shown(pair: Mapping[str, Any]) -> str:
        least = min(pair["low"], pair["low_with_empty"]) if pair["n"] else -1.0
        disagreeing = pair["observations"] - pair["agreeing"] if pair["networks"] > 1 else 0
        if not (least > -pair["margin"] and pair["p_holm"] < LEVEL and 2 * disagreeing < pair["observations"]):
            raise UnsupportedError(f"{pair['column']}: {pair['better']} is not shown to be better: {pair}")
        agree = f" ({pair['agreeing']} of {pair['observations']} networks)" if disagreeing else ""
        return _with_interval(pair["difference"], pair["low"], pair["high"]) + agree

    @staticmethod
    def _open(pair: Mapping[str, Any]) -> str:
        if pair["p_holm"] is None or pair["p_holm"] < LEVEL:
            raise UnsupportedError(
                f"{pair['column']}: {pair['better']} and {pair['worse']} do differ, or were not tested: {pair}"
            )
        said = _with_interval(pair["difference"], pair["low"], pair["high"])
        return f"{said}, p = {p_of(pair['p_holm'])} after Holm"


@dataclass(frozen=True)
class Asked(Stored):
    """A stand-in that records the pairs that sentences use; all its numbers are 0."""

    results: Mapping[str, Any] = field(default_factory=dict)
    pairs: dict[Pair, None] = field(default_factory=dict)

    def all_empty(self, column: str, row: str) -> bool:
        """Return True, because nothing is measured yet."""
        return True

    def better(self, column: str, better: str, worse: str) -> str:
        """Record the pair."""
        self._pair(column, better, worse)
        return ""

    def verdict(self, column: str, better: str, worse: str, margin: float = 0.0) -> tuple[bool, str]:
        """Record the pair."""
        self._pair(column, better, worse, margin)
        return True, ""

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

    def _pair(self, column: str, better: str, worse: str, margin: float = 0.0) -> Mapping[str, Any]:
        self.pairs[Pair(column, better, worse, margin)] = None
        return {"n": 0}


def listed(numbers: Sequence[float], form: str) -> str:
    """Return numbers as text for a sentence."""
    # adding 0 turns a rounded -0.0 into 0.0
    return joined([f"{round(number, int(form[1])) + 0.0:{form}}" for number in numbers])


def joined(said: Sequence[str]) -> str:
    """Join one or more phrases for a sentence."""
    return f"{', '.join(said[:-1])} and {said[-1]}" if len(said) > 1 else said[0]


def _with_interval(mean: float, low: float, high: float) -> str:
    # adding 0 turns a rounded -0.0 into 0.0
    said = [f"{round(number, 2) + 0.0:.2f}" for number in (mean, low, high)]
    return f"{said[0]} [{said[1]}, {said[2]}]"
