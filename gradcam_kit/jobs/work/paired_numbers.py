"""Numbers of the same pictures by several methods, from which a run reports differences."""

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
    """Numbers by metric, method and picture; those of several targets of a picture are averaged."""

    numbers: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)

    def add(self, rows: Iterable[Row], metrics: Sequence[str]) -> None:
        """Keep the numbers of rows that are ok."""
        for row in rows:
            for metric in metrics:
                number, status = columns_of(metric)
                if row.get(status) == "ok":
                    own = self.numbers.setdefault(metric, {}).setdefault(row["method"], {})
                    own.setdefault(row["path"], []).append(row[number])

    def lines(self) -> list[str]:
        """Return lines with the differences between methods, and between methods and baselines, per metric."""
        said = []
        for metric, values in self._by_picture().items():
            said += pair_lines(metric, values, [method for method in values if method in BASELINES])
        return said

    def agreement(self) -> list[dict[str, Any]]:
        """Return how alike the metrics rank methods and baselines, see `agreement_rows`.

        Nothing for one metric, or for fewer than three methods and baselines.
        """
        numbers = self._by_picture()
        methods = {method for values in numbers.values() for method in values}
        if len(numbers) < 2 or sum(all(method in own for own in numbers.values()) for method in methods) < 3:
            return []
        return agreement_rows(numbers)

    def _by_picture(self) -> dict[str, dict[str, Float[np.ndarray, " n"]]]:
        """Return metric -> method -> a number for each picture that has any, the same pictures in all; NaN else."""
        every = (path for by_method in self.numbers.values() for own in by_method.values() for path in own)
        paths = dict.fromkeys(every)
        return {
            metric: {
                method: np.array([_mean(own.get(path, ())) for path in paths]) for method, own in by_method.items()
            }
            for metric, by_method in self.numbers.items()
        }


def comparison_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """Return the same lines for comparisons of one set of methods on several batches of pictures."""
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
