"""Collect the numbers of several methods for the same pictures, and report differences between the methods."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from gradcam_kit.comparison import Comparison
from gradcam_kit.comparison.statistics import agreement_rows, pair_lines
from gradcam_kit.jobs.storage.rows import Row
from gradcam_kit.jobs.work.measuring import columns_of
from gradcam_kit.metrics import BASELINES


@dataclass
class PairedNumbers:
    """Numbers by metric, method and picture, averaged over several targets of a picture.

    A number takes four bytes, and no path is kept, so a million pictures with ten methods and four metrics take 160 MB.

    Attributes:
        better: metric -> "higher" or "lower"; "" where neither is.
        pictures: the number of pictures in each call of `add`.
        numbers: metric -> method -> call of `add` -> its numbers, NaN for pictures without one; no entry for calls
            without numbers.
    """

    better: Mapping[str, str]
    pictures: list[int] = field(default_factory=list)
    numbers: dict[str, dict[str, dict[int, Float[np.ndarray, " n"]]]] = field(default_factory=dict)

    def add(self, rows: Iterable[Row]) -> None:
        """Keep the numbers of the rows whose status is "ok"; `rows` are all rows of some pictures."""
        found: dict[tuple[str, str], dict[str, list[float]]] = {}
        for row in rows:
            for metric in self.better:
                number, status = columns_of(metric)
                if row.get(status) == "ok":
                    found.setdefault((metric, row["method"]), {}).setdefault(row["path"], []).append(row[number])
        paths = list(dict.fromkeys(path for own in found.values() for path in own))
        for (metric, method), own in found.items():
            means = np.array([_mean(own.get(path, ())) for path in paths], np.float32)
            self.numbers.setdefault(metric, {}).setdefault(method, {})[len(self.pictures)] = means
        self.pictures.append(len(paths))

    def lines(self) -> list[str]:
        """Return the lines of `pair_lines` for every metric."""
        said = []
        for metric in self.numbers:
            values = self._values(metric)
            said += pair_lines(metric, values, [method for method in values if method in BASELINES])
        return said

    def agreement(self) -> list[dict[str, Any]]:
        """Return how similarly the metrics rank methods and baselines, see `agreement_rows`.

        Empty if fewer than two metrics have a better direction, or if these metrics have fewer than three methods and
        baselines in common.
        """
        ranking = [metric for metric in self.numbers if self.better[metric]]
        methods = {method for metric in ranking for method in self.numbers[metric]}
        if len(ranking) < 2 or sum(all(method in self.numbers[one] for one in ranking) for method in methods) < 3:
            return []
        return agreement_rows({metric: self._values(metric) for metric in ranking}, self.better)

    def _values(self, metric: str) -> dict[str, Float[np.ndarray, " n"]]:
        """Return method -> a number for each picture that has one in some metric; NaN where this method has none."""
        return {
            method: np.concatenate(
                [
                    parts[place] if place in parts else np.full(size, np.nan, np.float32)
                    for place, size in enumerate(self.pictures)
                ]
            )
            for method, parts in self.numbers[metric].items()
        }


def comparison_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """Return the lines of `PairedNumbers.lines` for comparisons of the same methods on several batches of pictures."""
    found: dict[str, dict[str, list[Float[np.ndarray, " n"]]]] = {}
    for comparison in comparisons:
        for metric, own in comparison.numbers().items():
            for label, values in own.items():
                found.setdefault(metric, {}).setdefault(label, []).append(values)
    baselines = list(comparisons[0].baselines) if comparisons else []
    said: list[str] = []
    for metric, parts in found.items():
        joined: Mapping[str, Float[np.ndarray, " n"]] = {label: np.concatenate(own) for label, own in parts.items()}
        said += pair_lines(metric, joined, baselines)
    return said


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
