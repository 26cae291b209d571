"""What is stored of a run, as sentences need it: a sentence that says better asks for the test that supports it."""

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
        return f"{self.value(column, row):.2f}"

    def interval(self, column: str, row: str) -> str:
        """A mean with its interval."""
        cell = self._cell(column, row)
        self.require(cell["low"] is not None, f"{column}: {row} has no interval")
        return _with_interval(cell["mean"], cell["low"], cell["high"])

    def all_empty(self, column: str, row: str) -> bool:
        """Whether no map shows anything."""
        return bool(self._column(column)["scores"][row]["n"] == 0)

    def better(self, column: str, better: str, worse: str) -> str:
        """How much better one row is than another, with the interval, and how many networks agree if not all do.

        Raises:
            UnsupportedError: the difference is not positive, not beyond chance, with or without empty maps, or
                half of the networks or more disagree about its sign.
        """
        return self._shown(self._pair(column, better, worse))

    def verdict(self, column: str, better: str, worse: str, margin: float = 0.0) -> tuple[bool, str]:
        """Whether one row is shown to be better than another, and the difference as `better` or `not_shown` has it.

        With a margin: whether it is shown to be worse by less than that.

        Raises:
            UnsupportedError: the other one is better, or tests contradict each other.
        """
        pair = self._pair(column, better, worse, margin)
        try:
            return True, self._shown(pair)
        except UnsupportedError:
            return False, self._open(pair)

    def unclear(self, column: str, one: str, other: str) -> str:
        """The difference of two rows that are not shown to differ, with interval and p.

        Raises:
            UnsupportedError: they are, or only the correction for many pairs says that they are not.
        """
        pair = self._pair(column, one, other)
        if pair["low"] is None or pair["high"] is None or not pair["low"] < 0 < pair["high"]:
            raise UnsupportedError(f"{column}: the interval of {one} and {other} does not have 0 inside: {pair}")
        return self.not_shown(column, one, other)

    def not_shown(self, column: str, better: str, worse: str) -> str:
        """The difference of two rows that is not shown to be one, with interval and p; 0 may be outside of it.

        Raises:
            UnsupportedError: it is shown.
        """
        return self._open(self._pair(column, better, worse))

    def in_all(self, column: str, better: str, worse: str) -> str:
        """The mean difference where it has the same sign in all observations, which are too few for a test.

        Raises:
            UnsupportedError: not in all, or a test shows it.
        """
        pair = self._pair(column, better, worse)
        if pair["agreeing"] < pair["observations"] or pair["p_holm"] < LEVEL:
            raise UnsupportedError(f"{column}: {better} is not above {worse} in all alone: {pair}")
        return f"{pair['difference']:.2f}"

    def pictures(self, column: str, better: str, worse: str) -> int:
        """How many pictures a pair rests on."""
        return int(self._pair(column, better, worse)["n"])

    def networks(self, column: str) -> int:
        """How many count."""
        return int(next(iter(self._column(column)["scores"].values()))["networks"])

    def trained(self, column: str) -> int:
        """How many were trained."""
        return self.networks(column) + len(self._column(column)["left out"])

    def note(self, column: str, *names: str) -> float:
        """The mean over networks of what is noted under these names, each within the one before."""
        values = [float(reduce(getitem, names, one)) for one in self._column(column)["notes"]]
        return sum(values) / len(values)

    def draws(self, column: str, row: str) -> tuple[float, float]:
        """The smallest and the largest mean of any draw on any network."""
        notes = self._column(column)["notes"]
        means = [mean for one in notes for mean in one["draws"][row] if mean is not None]
        return min(means), max(means)

    def by_network(self, column: str, row: str) -> Sequence[float]:
        """The mean of each network."""
        found: Sequence[float] = self._column(column)["by network"][row]
        return found

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

    def low(self, column: str, row: str) -> float:
        """The lower end of the interval of a mean."""
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
                f"{pair['column']}: {pair['better']} and {pair['worse']} do differ, or nothing is known: {pair}"
            )
        said = _with_interval(pair["difference"], pair["low"], pair["high"])
        return f"{said}, p = {p_of(pair['p_holm'])} after Holm"


@dataclass(frozen=True)
class Asked(Stored):
    """Notes which pairs sentences ask for; all numbers are 0."""

    results: Mapping[str, Any] = field(default_factory=dict)
    pairs: dict[Pair, None] = field(default_factory=dict)

    def all_empty(self, column: str, row: str) -> bool:
        """Nothing is known."""
        return True

    def better(self, column: str, better: str, worse: str) -> str:
        """Note the pair."""
        self._pair(column, better, worse)
        return ""

    def verdict(self, column: str, better: str, worse: str, margin: float = 0.0) -> tuple[bool, str]:
        """Note the pair."""
        self._pair(column, better, worse, margin)
        return True, ""

    def unclear(self, column: str, one: str, other: str) -> str:
        """Note the pair."""
        return self.better(column, one, other)

    def not_shown(self, column: str, better: str, worse: str) -> str:
        """Note the pair."""
        return self.better(column, better, worse)

    def in_all(self, column: str, better: str, worse: str) -> str:
        """Note the pair."""
        return self.better(column, better, worse)

    def networks(self, column: str) -> int:
        """Nothing is known."""
        return 0

    def trained(self, column: str) -> int:
        """Nothing is known."""
        return 0

    def note(self, column: str, *names: str) -> float:
        """Nothing is known."""
        return 0.0

    def draws(self, column: str, row: str) -> tuple[float, float]:
        """Nothing is known."""
        return 0.0, 0.0

    def by_network(self, column: str, row: str) -> Sequence[float]:
        """Nothing is known."""
        return (0.0,)

    def require(self, condition: bool, said: str) -> None:
        """Nothing is known."""

    def _cell(self, column: str, row: str) -> Mapping[str, Any]:
        return {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 1, "empty": 0}

    def _pair(self, column: str, better: str, worse: str, margin: float = 0.0) -> Mapping[str, Any]:
        self.pairs[Pair(column, better, worse, margin)] = None
        return {"n": 0}


def listed(numbers: Sequence[float], form: str) -> str:
    """Numbers in a sentence."""
    # Adding 0 makes a rounded -0.0 positive.
    return joined([f"{round(number, int(form[1])) + 0.0:{form}}" for number in numbers])


def joined(said: Sequence[str]) -> str:
    """Words of a sentence, one or more."""
    return f"{', '.join(said[:-1])} and {said[-1]}" if len(said) > 1 else said[0]


def _with_interval(mean: float, low: float, high: float) -> str:
    # Adding 0 makes a rounded -0.0 positive.
    said = [f"{round(number, 2) + 0.0:.2f}" for number in (mean, low, high)]
    return f"{said[0]} [{said[1]}, {said[2]}]"
