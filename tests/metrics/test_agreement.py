"""Correlation, rank correlation and structural similarity of two maps."""

from __future__ import annotations

import numpy as np
import pytest
import reference_metrics as ref
import reference_metrics_localization as loc
import scipy.stats
import torch
from skimage.metrics import structural_similarity

from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.metrics import pearson, spearman, ssim
from gradcam_kit.similarity import ranks


def pair(n: int = 3, size: tuple[int, ...] = (13, 15), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.randn(2, n, *size, generator=torch.Generator().manual_seed(seed))
    return drawn[0], 0.5 * drawn[0] + drawn[1]


def test_pearson() -> None:
    a, b = pair()
    expected = [ref.pearson(x.double().numpy(), y.double().numpy()) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(pearson(a, b).numpy(), expected, rtol=1e-6)
    assert pearson(a, a * 3 - 5).tolist() == [pytest.approx(1)] * 3
    assert pearson(a, -a).tolist() == [pytest.approx(-1)] * 3


def test_spearman_with_ties_is_that_of_scipy() -> None:
    a, b = (torch.round(x * 2) for x in pair())
    assert [loc.spearman_ranks(x.numpy()) for x in a] == ranks(a.flatten(1)).tolist()
    expected = [
        scipy.stats.spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    np.testing.assert_allclose(spearman(a, b).numpy(), expected, rtol=1e-6)
    assert spearman(a, a**3).tolist() == [pytest.approx(1)] * 3


def test_spearman_keeps_the_sign() -> None:
    a, _ = pair()
    assert spearman(a, a.abs()).abs().max() < 0.5


def test_ssim() -> None:
    a, b = pair()
    for window, sigma in ((7, 1.5), (11, 2.0)):
        expected = [loc.ssim(x, y, window, sigma) for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)]
        np.testing.assert_allclose(ssim(a, b, window=window, sigma=sigma).numpy(), expected, rtol=1e-4)
    torch.testing.assert_close(ssim(a, a), torch.ones(3))
    torch.testing.assert_close(ssim(a, b), ssim(a * 7, b * 7))
    torch.testing.assert_close(ssim(a, b), ssim(b, a))


def test_ssim_is_that_of_scikit_image_where_windows_lie_inside() -> None:
    a, b = pair(size=(24, 20))
    span = torch.stack([a, b]).amax((0, 2, 3)) - torch.stack([a, b]).amin((0, 2, 3))
    for i in range(3):
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
        full = structural_similarity(
            a[i].double().numpy(), b[i].double().numpy(), data_range=float(span[i]), **options
        )[1]
        assert float(ssim(a[i : i + 1], b[i : i + 1])) == pytest.approx(full[5:-5, 5:-5].mean(), rel=1e-4)


@pytest.mark.parametrize("function", [pearson, spearman, ssim])
def test_maps_without_structure_have_no_agreement(function) -> None:
    a, b = pair(4)
    a[0], b[1], a[2, 3, 3] = 0.5, 0.0, torch.nan
    assert function(a, b).isnan().tolist() == [True, True, True, False]
    with pytest.raises((ShapeError, TypeError)):
        function(a, b[:, :12])


@pytest.mark.parametrize("function", [pearson, spearman])
def test_signals_and_volumes(function) -> None:
    for size in ((40,), (5, 6, 7)):
        a, b = pair(size=size)
        flat = function(a.reshape(3, 1, -1), b.reshape(3, 1, -1))
        torch.testing.assert_close(function(a, b), flat)


def test_small_maps() -> None:
    a, b = pair(size=(7, 7))
    with pytest.raises(OptionError, match=r"window is 11 for maps of \(7, 7\)"):
        ssim(a, b)
