"""Compare sets of features: CKA for layers, MMD for samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import InputError, NonFiniteError, ShapeError

_SCALES = (0.5, 1.0, 2.0)
_AT_ONCE = 64  # number of permutations in one matrix product


@dataclass(frozen=True)
class MMD:
    """The result of a test of whether two samples come from the same distribution.

    Attributes:
        value: the unbiased estimate of MMD squared; it may be slightly negative.
        p: share of the splits of the pooled samples, the given one included, whose value is at least as large.
    """

    value: float
    p: float


def cka(
    a: Float[Tensor, "n k"] | Iterable[Float[Tensor, "_ _"]], b: Float[Tensor, "m l"] | Iterable[Float[Tensor, "_ _"]]
) -> float:
    """Return the linear centered kernel alignment of two representations of the same samples.

    The unbiased HSIC terms are summed over batches before they are divided (minibatch CKA), as in Nguyen, Raghu &
    Kornblith, ICLR 2021. CKA is invariant to rotations and scaling of the features. A few outliers can dominate it:
    Davari et al., ICLR 2023.

    Args:
        a: features of one layer `(n, k)`, or batches of them.
        b: features of the other layer for the same samples in the same order, in batches of the same sizes.

    Returns:
        About 0 (unrelated) to 1 (equal up to rotation and scale); NaN if one of the representations is constant.

    Raises:
        ShapeError: fewer than 4 samples in a batch, or batches of different lengths.
        InputError: `a` and `b` have different numbers of batches.
        NonFiniteError: NaN or infinite features.

    Example:
        >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        >>> round(cka(x, 2 * x), 6)
        1.0
    """
    batches_a, batches_b = ([one] if isinstance(one, Tensor) else list(one) for one in (a, b))
    if len(batches_a) != len(batches_b) or not batches_a:
        raise InputError(
            f"there are {len(batches_a)} batches of the first features and {len(batches_b)} of the second; expected "
            "the same number of both, at least 1"
        )
    pairs = PairwiseCKA()
    for one, other in zip(batches_a, batches_b, strict=True):
        pairs.add([one], [other])
    return float(pairs.value[0, 0])


class PairwiseCKA:
    """Minibatch CKA of all pairs from two lists of representations, accumulated over batches: see `cka`.

    Example:
        >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        >>> pairs = PairwiseCKA()
        >>> pairs.add([x, 2 * x], [x])
        >>> pairs.value.shape
        torch.Size([2, 1])
    """

    def __init__(self) -> None:
        self._cross: Tensor | float = 0.0
        self._own: tuple[Tensor | float, Tensor | float] = 0.0, 0.0

    def add(self, a: Sequence[Float[Tensor, "_ _"]], b: Sequence[Float[Tensor, "_ _"]]) -> None:
        """Add a batch: the features `(n, k)` of the same samples in each representation.

        Every batch needs the same representations in the same order.

        Raises:
            ShapeError: fewer than 4 samples, or different numbers of samples.
            NonFiniteError: NaN or infinite features.
        """
        for one in (*a, *b):
            if one.ndim != 2 or len(one) != len(a[0]) or len(one) < 4:
                raise ShapeError(
                    f"features are {tuple(a[0].shape)} and {tuple(one.shape)}; expected (n, k) and (n, l) with the "
                    "same n of at least 4 samples"
                )
        grams_a = torch.stack([_without_diagonal(_gram(one)) for one in a])
        grams_b = grams_a if b is a else torch.stack([_without_diagonal(_gram(one)) for one in b])
        self._cross = self._cross + _hsic(grams_a, grams_b)
        own = (torch.cat([_hsic(one[None], one[None])[0] for one in grams]) for grams in (grams_a, grams_b))
        self._own = tuple(before + new for before, new in zip(self._own, own, strict=True))  # type: ignore[assignment]

    @property
    def value(self) -> Float[Tensor, "rows columns"]:
        """CKA of each pair, float64; NaN where one of the representations is constant."""
        a, b = (torch.as_tensor(own, dtype=torch.float64) for own in self._own)
        defined = (a[:, None] > 0) & (b > 0)
        scale = (a.clamp(min=0)[:, None] * b.clamp(min=0)).sqrt().where(defined, 1.0)
        return (torch.as_tensor(self._cross) / scale).masked_fill(~defined, torch.nan)


def mmd(x: Float[Tensor, "m k"], y: Float[Tensor, "n l"], *, permutations: int = 500, seed: int = 0) -> MMD:
    r"""Test whether two samples come from the same distribution: Gretton et al., JMLR 2012.

    The kernel is $\sum_s \exp(-d^2 / (2 s m))$, where m is the median of the squared distances of all pairs of the
    pooled samples and s is ½, 1 and 2.

    Args:
        x: features of one sample.
        y: features of the other sample.
        permutations: number of random splits of the pooled samples from which `p` is computed; `p` is at least 1 /
            (permutations + 1).
        seed: seed of the splits; global random states are neither used nor changed.

    Raises:
        ShapeError: fewer than 2 rows, or different numbers of features.
        NonFiniteError: NaN or infinite features.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ShapeError(
            f"features are {tuple(x.shape)} and {tuple(y.shape)}; expected (m, k) and (n, k) with the same k, and at "
            "least 2 rows of each"
        )
    m, n = len(x), len(y)
    kernel = _without_diagonal(_kernel(torch.cat([_checked(x), _checked(y)])))
    first = torch.zeros(permutations + 1, m + n, dtype=torch.float64)
    first[0, :m] = 1
    generator = torch.Generator().manual_seed(seed)
    for row in first[1:]:
        row[torch.randperm(m + n, generator=generator)[:m]] = 1
    found = torch.cat([_mmd_squared(kernel, rows, m, n) for rows in first.split(_AT_ONCE)])
    value = float(found[0])
    rounding = 1e-12 * len(_SCALES)
    at_least = int((found[1:] >= value - rounding).sum())
    return MMD(value, (1 + at_least) / (1 + permutations))


def _hsic(k: Float[Tensor, "a n n"], j: Float[Tensor, "b n n"]) -> Float[Tensor, "a b"]:
    """Return the unbiased HSIC of all pairs of Gram matrices with zero diagonals: Song et al., JMLR 2012."""
    n = k.shape[1]
    traced = k.flatten(1) @ j.flatten(1).mT
    sums = k.sum((1, 2))[:, None] * j.sum((1, 2)) / ((n - 1) * (n - 2))
    rows = 2 / (n - 2) * (k.sum(dim=1) @ j.sum(dim=1).mT)
    return (traced + sums - rows) / (n * (n - 3))


def _gram(features: Float[Tensor, "n k"]) -> Float[Tensor, "n n"]:
    """Return the inner products of centered features; centering changes only the rounding of HSIC."""
    wide = _checked(features)
    centered = wide - wide.mean(dim=0)
    noise = torch.finfo(features.dtype).eps * wide.norm(dim=0)
    centered = centered.where(centered.norm(dim=0) > noise, 0.0)  # a unit that varies only by rounding errors
    return centered @ centered.mT


def _kernel(pooled: Float[Tensor, "n k"]) -> Float[Tensor, "n n"]:
    squared = torch.cdist(pooled, pooled, compute_mode="donot_use_mm_for_euclid_dist").square()
    upper = squared[torch.triu(torch.ones_like(squared, dtype=torch.bool), diagonal=1)].sort().values
    middle = float((upper[(len(upper) - 1) // 2] + upper[len(upper) // 2]) / 2)
    if middle == 0:  # more than half of the pairs are equal, so the scale is the mean of the others
        others = upper[upper > 0]
        middle = float(others.mean()) if len(others) else 1.0
    kernel = torch.zeros_like(squared)
    for scale in _SCALES:
        kernel += torch.exp(-squared / (2 * scale * middle))
    return kernel


def _mmd_squared(kernel: Float[Tensor, "N N"], first: Float[Tensor, "p N"], m: int, n: int) -> Float[Tensor, " p"]:
    """Return the unbiased estimate for each split; `first` is 1 where a sample belongs to the first set."""
    reached = first @ kernel
    within = (reached * first).sum(dim=1)
    across = (reached * (1 - first)).sum(dim=1)
    rest = kernel.sum() - within - 2 * across
    return within / (m * (m - 1)) + rest / (n * (n - 1)) - 2 * across / (m * n)


def _without_diagonal(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    return matrix.fill_diagonal_(0)


def _checked(features: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    if not bool(features.isfinite().all()):
        raise NonFiniteError("features hold NaN or infinite values, so distances are undefined; expected finite values")
    return features.detach().to("cpu", torch.float64)
