"""Effective rank, redundancy, CKA, MMD and Holm's correction against loops in float64 and numbers checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from gradcam_kit.diagnostics.maths.distances import cka, mmd
from gradcam_kit.diagnostics.maths.spectra import d99, effective_rank, redundancy
from gradcam_kit.errors import InputError, NonFiniteError, ShapeError
from gradcam_kit.significance import holm


def draws(n: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hsic_loops(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    k, j = x @ x.T, y @ y.T
    traced = sums_k = sums_j = rows = 0.0
    for a in range(n):
        for b in range(n):
            if a != b:
                traced += k[a, b] * j[b, a]
                sums_k += k[a, b]
                sums_j += j[a, b]
            for c in range(n):
                if a != b and b != c:
                    rows += k[a, b] * j[b, c]
    return (traced + sums_k * sums_j / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows) / (n * (n - 3))


def mmd_loops(x: np.ndarray, y: np.ndarray) -> float:
    pooled = np.concatenate([x, y])
    distances = [((pooled[i] - pooled[j]) ** 2).sum() for i in range(len(pooled)) for j in range(i)]
    middle = np.median(distances)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return sum(np.exp(-((a - b) ** 2).sum() / (2 * s * middle)) for s in (0.5, 1, 2))

    m, n = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(kernel(a, b) for a in x for b in y) / (m * n)


def test_effective_rank_of_features_that_can_be_checked_by_hand() -> None:
    axes = torch.eye(4)
    assert effective_rank(torch.cat([axes, -axes])) == pytest.approx(4)
    assert effective_rank(torch.cat([axes[:1], -axes[:1]])) == pytest.approx(1)
    assert effective_rank(torch.full((8, 5), 0.1)) == 0.0
    assert effective_rank(torch.full((300, 5), 1e4 / 3)) == 0.0


def test_effective_rank_and_d99_equal_numpy() -> None:
    features = draws(30, 7) * torch.arange(1, 8) ** 3 + 5
    values = np.linalg.svd(features.numpy() - features.numpy().mean(0), compute_uv=False)
    shares = values / values.sum()
    assert effective_rank(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-12)
    assert effective_rank(features.float()) == pytest.approx(effective_rank(features), rel=1e-4)
    explained = np.cumsum(values**2) / (values**2).sum()
    assert d99(features) == next(i for i, share in enumerate(explained, 1) if share >= 0.99)
    assert d99(torch.ones(4, 3)) == 0


def test_redundancy_counts_units_with_a_twin() -> None:
    features = draws(60, 6)
    features[:, 3] = -2 * features[:, 0] + 7
    features[:, 5] = 1.0
    pairs = np.abs([[pearsonr(a, b).statistic if a.std() * b.std() else 0 for b in features.T] for a in features.T[:5]])
    assert np.isclose(pairs, 1).sum() == 7
    assert redundancy(features) == pytest.approx(2 / 6)
    assert redundancy(draws(60, 6)) == 0


def test_cka_equals_the_loops_and_pools_the_sums_of_batches() -> None:
    x, y = draws(10, 4), draws(10, 3, 1)
    y[:, 0] += 2 * x[:, 1]
    expected = hsic_loops(x.numpy(), y.numpy()) / np.sqrt(
        hsic_loops(x.numpy(), x.numpy()) * hsic_loops(y.numpy(), y.numpy())
    )
    assert cka(x, y) == pytest.approx(expected, rel=1e-9)
    assert cka(x + 100, 3 * y @ torch.linalg.qr(draws(3, 3, 2)).Q) == pytest.approx(expected, rel=1e-9)
    parts = [(x[:5], y[:5]), (x[5:], y[5:])]
    sums = [[hsic_loops(a.numpy(), b.numpy()) for a, b in ((u, v), (u, u), (v, v))] for u, v in parts]
    cross, own_x, own_y = np.sum(sums, axis=0)
    assert cka([u for u, _ in parts], [v for _, v in parts]) == pytest.approx(cross / np.sqrt(own_x * own_y), rel=1e-9)
    assert cka(x, x) == pytest.approx(1)
    assert np.isnan(cka(x, torch.ones(10, 2, dtype=torch.float64)))


def test_mmd_equals_the_loops_and_its_p_value_tells_shifts_from_chance() -> None:
    x, y = draws(7, 3), draws(9, 3, 1) + 0.5
    assert mmd(x, y).value == pytest.approx(mmd_loops(x.numpy(), y.numpy()), rel=1e-9)
    assert mmd(draws(40, 5), draws(40, 5, 1) + 1).p == pytest.approx(1 / 501)
    state = torch.get_rng_state()
    alarms = sum(
        mmd(draws(30, 5, 2 * seed), draws(30, 5, 2 * seed + 1), permutations=99).p < 0.05 for seed in range(20)
    )
    assert alarms <= 1
    assert torch.equal(state, torch.get_rng_state())
    assert mmd(x, y, seed=3) == mmd(x, y, seed=3)
    same = mmd(torch.ones(4, 2), torch.ones(5, 2))
    assert (same.value, same.p) == (pytest.approx(0), 1.0)


def test_brighter_pictures_are_a_shift_and_the_same_distribution_is_none() -> None:
    pictures = torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    bright = (pictures[40:] * 1.3 + 0.2).flatten(2).mean(2)
    assert mmd(pictures[:40].flatten(2).mean(2), bright).p < 0.01
    assert mmd(pictures[:40].flatten(2).mean(2), pictures[40:].flatten(2).mean(2)).p > 0.05


def test_holm_equals_the_step_down_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_features_that_have_no_distance_or_rank_are_errors() -> None:
    with pytest.raises(ShapeError, match=r"at least 4 samples"):
        cka(draws(3, 2), draws(3, 2))
    with pytest.raises(ShapeError, match=r"\(8, 2\) and \(7, 2\)"):
        cka(draws(8, 2), draws(7, 2))
    with pytest.raises(InputError, match="2 batches of the first features and 1 of the second"):
        cka([draws(8, 2)] * 2, [draws(8, 2)])
    with pytest.raises(ShapeError, match="same k"):
        mmd(draws(8, 2), draws(8, 3))
    broken = draws(8, 2)
    broken[0, 0] = torch.nan
    for call in (lambda: cka(broken, broken), lambda: mmd(broken, broken), lambda: effective_rank(broken)):
        with pytest.raises(NonFiniteError, match="NaN"):
            call()
