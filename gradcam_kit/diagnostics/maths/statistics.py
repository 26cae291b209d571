"""Mergeable statistics of tensors: Chan, Golub & LeVeque, Stanford STAN-CS-79-773 (1979).

`summarize` reads a tensor a few times and leaves the results on its device. `Moments` merges results of batches,
windows and ranks on the host, in float64 and in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.diagnostics.maths.histogram import in_memory_order

_PIECE = 4096
_QUANTILE = 1.96
_CANCELLATION = 1e-2
"""Below this share of `total^2 / elements`, `square - total^2 / elements` has lost too many digits."""


@dataclass(frozen=True)
class Moments:
    """Moments of all values seen so far.

    Attributes:
        n: number of samples.
        elements: number of values, NaN and infinite ones included.
        finite: number of finite values, from which the moments are computed.
        mean: mean of the finite values.
        m2: sum of the squared deviations of the finite values from their mean.
        minimum: the smallest finite value.
        maximum: the largest finite value.
        nan: number of NaN values.
        inf: number of infinite values.
    """

    n: int = 0
    elements: int = 0
    finite: int = 0
    mean: float = 0.0
    m2: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf
    nan: int = 0
    inf: int = 0

    @property
    def std(self) -> float:
        r"""The standard deviation of the finite values, `sqrt(m2 / finite)`; NaN without finite values."""
        return math.sqrt(max(self.m2, 0.0) / self.finite) if self.finite else math.nan

    @property
    def mean_square(self) -> float:
        r"""The mean of the squares of the finite values; NaN without finite values."""
        return self.m2 / self.finite + self.mean**2 if self.finite else math.nan

    def merge(self, other: Moments) -> Moments:
        r"""Return the moments of both sets of values.

        $M_2 = M_{2a} + M_{2b} + (\mu_b - \mu_a)^2 m_a m_b / (m_a + m_b)$ for sets $a$ and $b$ of $m_a$ and $m_b$ finite
        values with means $\mu_a$ and $\mu_b$.
        """
        total = self.finite + other.finite
        counts = Moments(
            n=self.n + other.n,
            elements=self.elements + other.elements,
            finite=total,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            nan=self.nan + other.nan,
            inf=self.inf + other.inf,
        )
        if not total:
            return counts
        delta = other.mean - self.mean if self.finite and other.finite else 0.0
        start = self.mean if self.finite else other.mean
        return replace(
            counts,
            mean=start + delta * other.finite / total,
            m2=self.m2 + other.m2 + delta * delta * self.finite * other.finite / total,
        )


@dataclass(frozen=True)
class Axes:
    """The axes of a tensor that hold samples and units; all others are positions.

    Attributes:
        units: number of units.
        n: number of samples.
        unit: the axis of the units, not negative; None where a tensor has a single unit.
        sample: the axis of the samples; None where a tensor has a single sample.
    """

    units: int
    n: int
    unit: int | None
    sample: int | None

    @classmethod
    def of(cls, shape: torch.Size, unit: int | None, sample: int = 0) -> Axes:
        """Find the axes of a shape; a single axis holds samples of one unit, or the units of one sample (`unit=0`)."""
        if unit is not None:
            unit = unit + len(shape) if unit < 0 else unit
            unit = unit if 0 <= unit < len(shape) else None
        axis = sample if sample < len(shape) and sample != unit else None
        return cls(1 if unit is None else shape[unit], 1 if axis is None else shape[axis], unit, axis)


class Summary(NamedTuple):
    """Sums and extremes of one tensor, still on its device.

    Attributes:
        pooled: the sum over positions `(n, k)`.
        low: the smallest value of each unit `(k,)`.
        high: the largest value of each unit `(k,)`.
        total: the sum of all values, in float64 (in float32 on MPS, which lacks float64).
        square: the sum of all squares, in the same precision.
        m2: the sum of squared deviations from the mean, computed in separate passes; None if not requested.
    """

    pooled: Float[Tensor, "n k"]
    low: Float[Tensor, " k"]
    high: Float[Tensor, " k"]
    total: Float[Tensor, ""]
    square: Float[Tensor, ""]
    m2: Float[Tensor, ""] | None


def at_least_float32(x: Tensor) -> Tensor:
    """Return float32 and float64 unchanged, and all else as float32, so that norms of float16 do not overflow."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def summarize(x: Float[Tensor, "..."], axes: Axes, *, two_pass: bool = False) -> Summary:
    """Read a tensor of float32 or float64 in four passes: sums over positions, squares, minima and maxima of units.

    Args:
        x: the values, at least one.
        axes: the axes that hold samples and units.
        two_pass: also sum the squared deviations from the mean, in separate passes.
    """
    pooled = pool(x, axes)
    low, high = _extremes(x, axes)
    total = pooled.sum(dtype=_widest(x))
    m2 = x.var(correction=0) * x.numel() if two_pass else None
    return Summary(pooled, low, high, total, sum_of_squares(x), m2)


def sum_of_squares(x: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Return the sum of the squares of all values, in float64 (in float32 on MPS).

    A single norm of millions of float32 values has a relative error of 3e-4, so squared norms of pieces are added.
    """
    flat = in_memory_order(x)
    wide = _widest(x)
    rows = flat.numel() // _PIECE
    if rows < 2:
        return _square_of_norm(flat, wide)
    pieces = torch.linalg.vector_norm(flat[: rows * _PIECE].view(rows, _PIECE), dim=1).to(wide)
    total: Tensor = pieces.square().sum()
    rest = flat[rows * _PIECE :]
    return total + _square_of_norm(rest, wide) if len(rest) else total


def _square_of_norm(x: Tensor, wide: torch.dtype) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x)
    return norm.to(wide).square()


def _widest(x: Tensor) -> torch.dtype:
    return torch.float64 if x.device.type != "mps" else torch.float32


def pool(x: Tensor, axes: Axes) -> Float[Tensor, "n k"]:
    """Return the sums over positions, one row per sample and one column per unit."""
    positions = [axis for axis in range(x.ndim) if axis not in (axes.unit, axes.sample)]
    if positions:
        behind = axes.unit is not None and positions == list(range(positions[0], x.ndim))
        x = x.flatten(positions[0]).sum(-1) if behind and x.is_contiguous() else x.sum(positions)
    if axes.unit is not None and axes.sample is not None:
        return x if axes.sample < axes.unit else x.t()
    return x.reshape(axes.n, axes.units)


def _extremes(x: Tensor, axes: Axes) -> tuple[Tensor, Tensor]:
    if axes.unit is None:
        return x.amin().reshape(1), x.amax().reshape(1)
    if axes.unit == 1 and x.ndim > 2:  # reduce samples first, so that each pass reads memory in order
        low, high = x.amin(0), x.amax(0)
        rest = list(range(1, low.ndim))
        return low.amin(rest), high.amax(rest)
    others = [axis for axis in range(x.ndim) if axis != axes.unit]
    return (x.amin(others), x.amax(others)) if others else (x, x)


def needs_two_passes(total: float, square: float, elements: int) -> bool:
    """Whether `square - total^2 / elements` loses too many digits to cancellation."""
    of_mean = total * total / elements
    return square - of_mean <= _CANCELLATION * of_mean


def moments_of(
    axes: Axes, elements: int, total: float, square: float, m2: float | None, low: float, high: float
) -> Moments:
    """Return the moments of one tensor without NaN and infinities, from its summary on the host."""
    mean = total / elements
    squares = square - mean * total if m2 is None else m2
    return Moments(axes.n, elements, elements, mean, max(squares, 0.0), low, high)


def moments_of_finite(x: Float[Tensor, "..."], axes: Axes) -> tuple[Moments, Summary]:
    """Count NaN and infinities exactly, and compute the statistics of the finite values.

    Synchronizes. A unit without finite values has the extremes +inf and -inf, which do not affect merged extremes.
    """
    finite = torch.isfinite(x)
    nan = int(torch.isnan(x).sum())
    count = int(finite.sum())
    counts = Moments(axes.n, x.numel(), 0, nan=nan, inf=x.numel() - count - nan)
    zeroed = torch.where(finite, x, 0)
    low, _ = _extremes(torch.where(finite, x, torch.inf), axes)
    _, high = _extremes(torch.where(finite, x, -torch.inf), axes)
    summary = Summary(pool(zeroed, axes), low, high, zeroed.sum(dtype=_widest(x)), sum_of_squares(zeroed), None)
    if not count:
        return counts, summary
    values = x[finite].double()
    return replace(
        counts,
        finite=count,
        mean=float(values.mean()),
        m2=float(values.var(correction=0)) * count,
        minimum=float(values.min()),
        maximum=float(values.max()),
    ), summary


def moments(x: Float[Tensor, "..."], unit: int | None = None, sample: int = 0) -> tuple[Moments, Summary]:
    """Return the moments of a tensor and its summary, in a few passes, with further passes only if needed.

    Synchronizes. Half precision is read as float32; float64 stays float64.
    """
    x = at_least_float32(x.detach())
    axes = Axes.of(x.shape, unit, sample)
    summary = summarize(x, axes)
    total, square = float(summary.total), float(summary.square)
    low, high = float(summary.low.min()), float(summary.high.max())
    if not (math.isfinite(total) and math.isfinite(square) and math.isfinite(low) and math.isfinite(high)):
        return moments_of_finite(x, axes)
    two_pass = x.dtype == torch.float64 or needs_two_passes(total, square, x.numel())
    m2 = float(x.double().var(correction=0)) * x.numel() if two_pass else None
    return moments_of(axes, x.numel(), total, square, m2, low, high), summary


def binomial_error(share: float, n: int) -> float:
    """Return the margin of error of a share that was observed among `n` values, at 95 % confidence.

    The interval is Wilson's (1927), whose width is positive even at shares of 0 and 1: Brown, Cai & DasGupta, 2001.
    """
    if n < 1:
        return 1.0
    square = _QUANTILE**2 / n
    center = (share + square / 2) / (1 + square)
    half = _QUANTILE * math.sqrt(share * (1 - share) / n + square / (4 * n)) / (1 + square)
    return max(share - max(center - half, 0.0), min(center + half, 1.0) - share)
