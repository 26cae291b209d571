"""Correct the p-values of several tests."""

from __future__ import annotations

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the probability of any false alarm is at most the level (Holm, 1979).

    Args:
        p_values: p-value of each test. NaN marks a test that could not be done, which is not counted and gets NaN.

    Returns:
        The adjusted p-values in the same order, to be compared with the level, such as 0.05.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = largest
    return adjusted
