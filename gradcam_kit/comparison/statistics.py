"""Statistics of a comparison: paired differences of methods, and agreement of metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from gradcam_kit.comparison.measuring import RANDOM_DRAWS
from gradcam_kit.errors import missing_extra
from gradcam_kit.metrics import MetricResult
from gradcam_kit.metrics.paired import EXACT, FEWEST, PairedDifference, mean_interval, paired_differences
from gradcam_kit.metrics.rank_agreement import rank_agreement

if TYPE_CHECKING:
    import pandas

_DRAWS = 10_000
_DRAWS_PER_PAIR = 400
"""With this many draws per pair, p can be as small as 1/400 after Holm's correction, a twentieth of the level 0.05."""
_SHOWN = 12

Numbers = Mapping[str, Float[np.ndarray, " n"]]


class Statistics:
    """Statistics over the images of a comparison."""

    measured: Mapping[str, Mapping[str, MetricResult]]
    baselines: Mapping[str, Mapping[str, MetricResult]]
    names: Sequence[str]

    @property
    def pairs(self) -> pandas.DataFrame:
        """Return one row per metric and pair: first the pairs of two methods, then those of a method and a baseline.

        The columns are the mean difference over the images, its 95 % interval, and the p-value of a sign-flip test,
        uncorrected and corrected by Holm's method for all pairs of the metric; see `paired_differences`. With fewer
        than six images, p is never below 0.05. Several targets of an image are averaged first.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return frame(self.pair_rows())

    def pair_rows(self) -> list[dict[str, Any]]:
        """Return the rows of `pairs` as plain values."""
        return [row for name, own in self.numbers().items() for row in pair_rows(name, own, list(self.baselines))]

    @property
    def agreement(self) -> pandas.DataFrame:
        """Return how much metrics agree on the ranking of methods: a row and a column per metric, and `reliability`.

        Only metrics with a better direction are included, and only methods and baselines that have images with status
        OK in every metric; see `RankAgreement`.

        Raises:
            OptionError: fewer than three methods and baselines, or no metric with a better direction.
            MissingExtraError: pandas is not installed.
        """
        return frame(self.agreement_rows()).set_index("metric")

    def agreement_rows(self) -> list[dict[str, Any]]:
        """Return the rows of `agreement` as plain values."""
        measured = [*self.measured.values(), *self.baselines.values()]
        return agreement_rows(self.numbers(), {name: one.better for own in measured for name, one in own.items()})

    def numbers(self) -> dict[str, dict[str, Float[np.ndarray, " n"]]]:
        """Return metric -> method or baseline -> a number for each image, NaN where the status is not OK."""
        found: dict[str, dict[str, Float[np.ndarray, " n"]]] = {}
        for label, own in {**self.measured, **self.baselines}.items():
            for name, one in own.items():
                values = one.values.where(one.ok, torch.nan).double().cpu()
                found.setdefault(name, {})[label] = values.reshape(len(self.names), -1).nanmean(1).numpy()
        return found


def agreement_rows(numbers: Mapping[str, Numbers], better: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row for each metric: the agreement of its ranking with that of every metric, and its reliability.

    Args:
        numbers: metric -> method or baseline -> a number for each image, NaN where the status is not OK. Methods and
            baselines that lack a number in one of the metrics are left out.
        better: metric -> "higher" or "lower"; metrics for which neither is better are left out.

    Raises:
        OptionError: fewer than three methods and baselines, or no metric with a better direction.
    """
    numbers = {name: own for name, own in numbers.items() if better.get(name)}
    labels = dict.fromkeys(label for own in numbers.values() for label in own)
    counted = [
        label for label in labels if all(label in own and np.isfinite(own[label]).any() for own in numbers.values())
    ]
    tables = {
        name: torch.from_numpy(np.array([own[label] for label in counted]).reshape(len(counted), -1))
        for name, own in numbers.items()
    }
    found = rank_agreement(tables, [name for name in tables if better[name] == "lower"])
    return [
        {
            "metric": name,
            **dict(zip(found.metrics, found.consistency[place].tolist(), strict=True)),
            "reliability": float(found.reliability[place]),
        }
        for place, name in enumerate(found.metrics)
    ]


def pair_rows(metric: str, numbers: Numbers, baselines: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return a row for each pair of methods, or of a method and a baseline, with measured images in common."""
    return [{"metric": metric, **vars(one)} for one in _pairs(numbers, baselines)[0]]


def pair_lines(metric: str, numbers: Numbers, baselines: Sequence[str] = ()) -> list[str]:
    """Return the differences of a metric, one line each: at most 12 between methods and 12 from baselines.

    A heading comes first, and the mean of the random baseline precedes the differences from baselines. The list is
    empty for a single image.
    """
    rows, draws = _pairs(numbers, baselines)
    rows = [one for one in rows if one.count > 1]
    among = [one for one in rows if one.second not in baselines]
    beside = sorted((one for one in rows if one.second in baselines), key=lambda one: list(baselines).index(one.second))
    head = ["paired differences of means, 95 % interval (Student), p of sign flips corrected by Holm:"] * bool(rows)
    return [
        *head,
        *_lines(metric, among, "pairs", draws),
        *(_random_line(metric, numbers["random"]) if rows and "random" in baselines and "random" in numbers else ()),
        *_lines(metric, beside, "pairs with baselines", draws),
    ]


def _pairs(numbers: Numbers, baselines: Sequence[str]) -> tuple[list[PairedDifference], int]:
    """Return the differences, and the number of draws of signs for their p-values."""
    methods = [label for label in numbers if label not in baselines]
    asked = [*combinations(methods, 2), *((one, other) for one in methods for other in baselines if other in numbers)]
    draws = max(_DRAWS, _DRAWS_PER_PAIR * len(asked))
    return [one for one in paired_differences(numbers, asked, draws=draws) if one.count], draws


def _lines(metric: str, rows: Sequence[PairedDifference], what: str, draws: int) -> list[str]:
    said = [
        f"{metric}: {one.first} - {one.second} = {one.difference:.3g} "
        f"[{one.low:.3g}, {one.high:.3g}], {_p_said(one, draws)}"
        for one in rows[:_SHOWN]
    ]
    return [*said, *[f"{metric}: and {len(rows) - _SHOWN} more {what}"] * (len(rows) > _SHOWN)]


def _p_said(one: PairedDifference, draws: int) -> str:
    if one.count < FEWEST:
        return f"{one.count} images, too few for a test"
    at_floor = one.count > EXACT and one.p <= 1 / (draws + 1)  # no draw was as far from 0: p may be smaller
    return f"p {'≤ ' if at_floor else ''}{one.p_holm:.2g}, {one.count:,} images"


def _random_line(metric: str, values: Float[np.ndarray, " n"]) -> list[str]:
    """Return a line with the mean of the random baseline over draws and images, and the interval over images."""
    known = values[np.isfinite(values)].astype(np.float64)
    if len(known) < 2:
        return []
    low, high = mean_interval(known)
    drawn = f"mean over {RANDOM_DRAWS} draws and {len(known):,} images"
    return [f"{metric}: random = {known.mean():.3g} [{low:.3g}, {high:.3g}], {drawn}"]


def frame(rows: Iterable[Mapping[str, Any]]) -> pandas.DataFrame:
    """Return rows as a pandas DataFrame.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        instead = "rows(), summary_rows(), pair_rows() and agreement_rows() return the same as plain values"
        raise missing_extra("tables need pandas", "notebook", instead) from error
    return pandas.DataFrame(list(rows))
