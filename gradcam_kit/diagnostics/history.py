"""Keep the history of a layer in constant memory: at most 96 rows; once there are 96, neighbors are merged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradcam_kit.diagnostics.maths.histogram import COARSE

ROWS = 96
"""Maximum number of rows; a row takes 112 bytes, so the history of a layer takes at most 10.5 KiB."""
FIELDS = ("step", "elements", "mean", "std", "min", "max", "not_finite", "dead", "gradient_norm", "saturated")


@dataclass
class History:
    """Rows of windows, the oldest first; at 96 rows, pairs of neighbors are merged.

    Attributes:
        values: `(rows, fields)`; see `FIELDS`.
        shares: `(rows, 36)` shares of the coarse bins of the activations.
        windows: number of windows that each row represents.
        pending: values and shares of the windows that do not fill a row yet; None if there are none.
        waiting: number of these windows.
    """

    values: Any = field(default_factory=lambda: np.zeros((0, len(FIELDS)), dtype=np.float32))
    shares: Any = field(default_factory=lambda: np.zeros((0, COARSE), dtype=np.float16))
    windows: int = 1
    pending: tuple[Any, Any] | None = None
    waiting: int = 0

    def add(self, row: dict[str, float], coarse: Any) -> None:
        """Append one window: its numbers, and the counts of the coarse bins."""
        values = np.array([row[name] for name in FIELDS], dtype=np.float64)
        shares = coarse / max(coarse.sum(), 1)
        if self.pending is not None:
            values, shares = _merged(*self.pending, values, shares)
        self.waiting += 1
        if self.waiting < self.windows:
            self.pending = values, shares
            return
        self.pending, self.waiting = None, 0
        self.values = np.concatenate([self.values, values[None].astype(np.float32)])
        self.shares = np.concatenate([self.shares, shares[None].astype(np.float16)])
        if len(self.values) == ROWS:
            pairs = [
                _merged(*(part.astype(np.float64) for part in (a, s, b, t)))
                for a, s, b, t in zip(
                    self.values[::2], self.shares[::2], self.values[1::2], self.shares[1::2], strict=True
                )
            ]
            self.values = np.stack([one for one, _ in pairs]).astype(np.float32)
            self.shares = np.stack([one for _, one in pairs]).astype(np.float16)
            self.windows *= 2

    def column(self, name: str) -> Any:
        """Return the values of one field over time."""
        return self.values[:, FIELDS.index(name)]

    def merge(self, other: History) -> History:
        """Merge two ranks' histories row by row if their numbers of rows and windows agree; else return the longer."""
        if self.values.shape != other.values.shape or self.windows != other.windows:
            return self if len(self.values) >= len(other.values) else other
        pairs = [
            _merged(*(part.astype(np.float64) for part in parts))
            for parts in zip(self.values, self.shares, other.values, other.shares, strict=True)
        ]
        if not pairs:
            return self
        values, shares = np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs])
        return History(values.astype(np.float32), shares.astype(np.float16), self.windows)


def _merged(a: Any, shares_a: Any, b: Any, shares_b: Any) -> tuple[Any, Any]:
    """Merge the moments, extremes and counts of two rows; other numbers are taken from the second row."""
    one, two = dict(zip(FIELDS, a, strict=True)), dict(zip(FIELDS, b, strict=True))
    total = one["elements"] + two["elements"]
    share = two["elements"] / total if total else 0.5
    delta = two["mean"] - one["mean"]
    variance = one["std"] ** 2 * (1 - share) + two["std"] ** 2 * share + delta**2 * share * (1 - share)
    row = {
        **two,
        "elements": total,
        "mean": one["mean"] + delta * share,
        "std": np.sqrt(variance),
        "min": min(one["min"], two["min"]),
        "max": max(one["max"], two["max"]),
        "not_finite": one["not_finite"] + two["not_finite"],
    }
    return np.array([row[name] for name in FIELDS]), shares_a * (1 - share) + shares_b * share
