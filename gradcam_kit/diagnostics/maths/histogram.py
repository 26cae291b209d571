"""Histograms with fixed bins: the upper bits of a float32.

Sign, exponent and the first 2 bits of the mantissa select one of 2,048 bins, 4 per octave over the range of float32.
Histograms are merged by adding integers, so neither the order of the values nor their division into batches matters.
Bins 0 and 1,024 hold zeros (and the smallest subnormals); the last 4 bins of each sign hold infinities and NaN.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 2048
SAMPLE = 4096
"""Maximum number of values that are sampled from one tensor in one step."""
_HALF = BINS // 2
_SHIFT = 21
_NOT_FINITE = 1020
COARSE = 36
"""Number of bins of a histogram over time; see `coarsen`."""
_COARSE_SIDE = 17
_COARSE_LOWEST = -24  # 2 ** -24, the smallest magnitude distinguished from zero
_PRIMES = (1, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)


def bins_of(x: Float[Tensor, " m"]) -> Int[Tensor, " m"]:
    """Return the bin of each value; float64 is rounded to float32 first."""
    return (x.float().view(torch.int32) >> _SHIFT) & (BINS - 1)


def histogram(x: Float[Tensor, "..."]) -> Int[Tensor, " bins"]:
    """Count all values of a tensor on its device, without synchronization."""
    bins = bins_of(x.detach().reshape(-1)).long()
    # `bincount` would synchronize.
    return torch.zeros(BINS, dtype=torch.int64, device=x.device).scatter_add_(0, bins, torch.ones_like(bins))


def add_counts(counts: Int[Tensor, "rows bins"], rows: Int[Tensor, " m"], x: Float[Tensor, " m"]) -> None:
    """Add each value to the histogram of its row, in place."""
    places = rows * BINS + bins_of(x)
    counts.view(-1).scatter_add_(0, places, torch.ones_like(places))


@lru_cache(maxsize=1)
def _edges() -> np.ndarray:
    bits = (np.arange(_NOT_FINITE + 1, dtype=np.uint32) << _SHIFT).view(np.float32)
    return bits.astype(np.float64)


def edges() -> Float[np.ndarray, " edges"]:
    """Return the edges of the finite bins in ascending order, from the most negative, for counts from `ordered`."""
    positive = _edges().copy()
    positive[-1] = float(np.finfo(np.float32).max)
    return np.concatenate([-positive[:0:-1], positive])


def ordered(counts: Int[np.ndarray, " bins"]) -> Int[np.ndarray, " ordered"]:
    """Return the counts of the finite bins in ascending order; zeros of both signs are in the first bin above 0."""
    positive, negative = counts[:_NOT_FINITE].copy(), counts[_HALF : _HALF + _NOT_FINITE].copy()
    positive[0] += negative[0]
    negative[0] = 0
    return np.concatenate([negative[::-1], positive])


def zeros(counts: Int[np.ndarray, " bins"]) -> int:
    """Return how many values are zero."""
    return int(counts[0] + counts[_HALF])


def not_finite(counts: Int[np.ndarray, " bins"]) -> int:
    """Return how many values are NaN or infinite."""
    return int(counts[_NOT_FINITE:_HALF].sum() + counts[_HALF + _NOT_FINITE :].sum())


def quantile(counts: Int[np.ndarray, " bins"], q: float) -> float:
    """Return the q-quantile of the finite values, accurate to 12.5 %; NaN without values."""
    values = ordered(counts)
    total = int(values.sum())
    if not total:
        return math.nan
    at = int(np.searchsorted(np.cumsum(values), max(q * total, 1), side="left"))
    limits = edges()
    if at == _NOT_FINITE:  # this is the bin of zeros
        return 0.0
    return float((limits[at] + limits[at + 1]) / 2)


def coarsen(counts: Int[np.ndarray, " bins"]) -> Int[np.ndarray, " coarse"]:
    """Sum counts into 36 bins: negative, zero and positive values in steps of two octaves, then non-finite values.

    Magnitudes from 2^-24 to 2^8 have separate bins; smaller ones are counted as zero, larger ones in the outermost bin.
    """
    out = np.zeros(COARSE, dtype=np.int64)
    positive, negative = counts[:_NOT_FINITE], counts[_HALF : _HALF + _NOT_FINITE]
    octave = np.arange(_NOT_FINITE) // 4 - 127
    step = (octave - _COARSE_LOWEST) // 2
    place = np.clip(step, 0, _COARSE_SIDE - 1)
    tiny = step < 0
    out[_COARSE_SIDE] = positive[tiny].sum() + negative[tiny].sum()
    np.add.at(out, _COARSE_SIDE + 1 + place[~tiny], positive[~tiny])
    np.add.at(out, _COARSE_SIDE - 1 - place[~tiny], negative[~tiny])
    out[COARSE - 1] = not_finite(counts)
    return out


def coarse_edges() -> Float[np.ndarray, " edges"]:
    """Return the edges of all bins of `coarsen` except the last, in ascending order."""
    magnitudes = 2.0 ** (_COARSE_LOWEST + 2 * np.arange(_COARSE_SIDE + 1))
    return np.concatenate([-magnitudes[::-1], magnitudes])


def stride_of(shape: tuple[int, ...], most: int = SAMPLE) -> int:
    """Return a stride that reads at most `most` values, if possible coprime to their number and to each axis size."""
    elements = math.prod(shape)
    start = max(1, -(-elements // most))
    return next(
        (start + add for add in range(4 * max(_PRIMES)) if _is_coprime(start + add, (elements, *shape))),
        start,
    )


def _is_coprime(step: int, numbers: tuple[int, ...]) -> bool:
    return all(math.gcd(step, number) == 1 for number in numbers if number > 1)


def in_memory_order(x: Float[Tensor, "..."]) -> Float[Tensor, " m"]:
    """Return the values as one axis: a view if the memory is dense, in any order of the axes, else a copy."""
    if x.is_contiguous():
        return x.view(-1)
    strides = sorted((stride, size) for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1)
    expected = 1
    for stride, size in strides:
        if stride != expected:
            return x.reshape(-1)
        expected *= size
    return x.as_strided((x.numel(),), (1,), x.storage_offset())


def take_sample(x: Float[Tensor, "..."], step: int, stride: int) -> Float[Tensor, " m"]:
    """Copy every `stride`-th value in memory order, from an offset that depends on `step`; no random state is used."""
    flat = in_memory_order(x)
    if stride == 1:
        return flat.clone()
    return flat[(step * 7919) % stride :: stride].clone()
