"""The median of a stream of values in constant memory."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from statistics import median
from typing import Any

_MOST_VALUES = 256


@dataclass
class RunningMedian:
    """The median of a stream in constant memory: exact for up to 256 values, then of every second, fourth, ... value.

    Attributes:
        values: the values that are kept, at most 256.
        stride: one of `stride` values is kept.
        seen: number of all values.
    """

    values: Any = field(default_factory=lambda: array("d"))
    stride: int = 1
    seen: int = 0

    def add(self, value: float) -> None:
        """Add one value."""
        if self.seen % self.stride == 0:
            self.values.append(value)
        self.seen += 1
        if len(self.values) > _MOST_VALUES:
            self.values, self.stride = self.values[::2], 2 * self.stride

    @property
    def value(self) -> float:
        """The median; NaN without values."""
        return float(median(self.values)) if self.values else float("nan")

    def merge(self, other: RunningMedian) -> RunningMedian:
        """Return the running median of both streams together."""
        stride = max(self.stride, other.stride)  # a stored value must stand for as many values in both streams
        values = sorted([*self.values[:: stride // self.stride], *other.values[:: stride // other.stride]])
        while len(values) > _MOST_VALUES:
            values, stride = values[::2], 2 * stride
        return RunningMedian(array("d", values), stride, self.seen + other.seen)
