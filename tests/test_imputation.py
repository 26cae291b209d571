"""The imputation of ROAD equals a direct solution of its system, in float32 and at every shape."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference_metrics as ref
import scipy.sparse
import scipy.sparse.linalg
import torch
from models import images
from torch import Tensor
from torch.nn.functional import interpolate

from gradcam_kit.errors import OptionError
from gradcam_kit.metrics import imputation, impute

SIDE = 224


def removed(values: Tensor, share: float) -> Tensor:
    """The largest values."""
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[values.flatten().argsort(descending=True)[: math.ceil(share * values.numel())]] = True
    return mask.reshape(1, *values.shape)


def blobs(seed: int = 0) -> Tensor:
    """Like a heatmap."""
    coarse = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    return interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")[0, 0]


def direct(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A sparse system over all removed positions, factorized."""
    height, width = mask.shape
    number = np.full((height + 2, width + 2), -2)
    number[1:-1, 1:-1] = np.where(mask, np.cumsum(mask).reshape(mask.shape) - 1, -1)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    ys, xs = np.nonzero(number >= 0)
    count = len(ys)
    diagonal, right, entries = np.zeros(count), np.zeros((count, len(image))), []
    for dy, dx in [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]:
        weight = 1 / 12 if dy and dx else 1 / 6
        other = number[ys + dy, xs + dx]
        diagonal += weight * (other != -2)
        known, unknown = other == -1, other >= 0
        right[known] += weight * padded[:, ys + dy, xs + dx].T[known]
        entries.append((np.nonzero(unknown)[0], other[unknown], np.full(unknown.sum(), -weight)))
    rows, columns, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    matrix = scipy.sparse.csc_matrix((values, (rows, columns)), (count, count)) + scipy.sparse.diags(diagonal)
    filled = image.copy()
    filled[:, mask] = scipy.sparse.linalg.splu(matrix.tocsc()).solve(right).T
    return filled


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["random", "blobs"])
def test_float32_against_a_direct_sparse_solution(kind: str, share: float) -> None:
    values = blobs() if kind == "blobs" else torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    mask, image = removed(values, share), images(1, size=(SIDE, SIDE))
    expected = direct(image[0].double().numpy(), mask[0].numpy())
    found = impute(image, mask)
    assert found.dtype == torch.float32
    error = (found[0].numpy() - expected)[:, mask[0].numpy()]
    # The noise that ROAD adds is 0.01.
    assert np.abs(error).max() < 3e-3
    assert np.sqrt(np.square(error).mean()) < 3e-4
    assert np.abs(impute(image, mask, tolerance=1e-6)[0].numpy() - expected).max() < 2e-4


@pytest.mark.parametrize("size", [(9, 8), (5, 13), (1, 7), (2, 2), (16, 16)])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_all_shapes_and_channels_against_a_dense_solution(size: tuple[int, int], share: float) -> None:
    for seed in range(2):
        x = images(1, c=2, size=size, seed=seed).double()
        mask = removed(torch.rand(size, generator=torch.Generator().manual_seed(seed)), share)
        if mask.all():
            continue
        expected = ref.impute(x[0].numpy(), mask[0].numpy())
        np.testing.assert_allclose(impute(x, mask, tolerance=1e-10)[0].numpy(), expected, atol=1e-7)


def test_the_coarser_grids_do_their_part(monkeypatch) -> None:
    """Plain conjugate gradients take hundreds of steps for a mask like a heatmap."""
    steps = []
    cycle = imputation._cycle
    monkeypatch.setattr(
        imputation, "_cycle", lambda levels, residual: steps.append(len(residual[0, 0])) or cycle(levels, residual)
    )
    x = images(1, size=(SIDE, SIDE))
    for mask in (removed(blobs(), 0.5), removed(-blobs(1), 0.8)):
        steps.clear()
        impute(x, mask)
        assert 3 < steps.count(SIDE) < 10


def test_the_middle_of_three_and_of_nine() -> None:
    row = torch.tensor([[[[2.0, 100.0, 6.0]]]])
    assert impute(row, torch.tensor([[[False, True, False]]])).flatten().tolist() == pytest.approx([2, 4, 6])
    block = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 99.0, 6.0], [7.0, 8.0, 10.0]]]])
    mask = torch.zeros(1, 3, 3, dtype=torch.bool)
    mask[0, 1, 1] = True
    assert float(impute(block, mask)[0, 0, 1, 1]) == pytest.approx((2 + 4 + 6 + 8) / 6 + (1 + 3 + 7 + 10) / 12)
    mask[0, 1, 1], mask[0, 0, 0] = False, True
    # In a corner three neighbors are left, with weights 1/6, 1/6 and 1/12.
    assert float(impute(block, mask)[0, 0, 0, 0]) == pytest.approx((2 + 4 + 99 / 2) / 2.5)


def test_images_do_not_mix_and_known_positions_stay() -> None:
    x, masks = images(3, size=(12, 12)), torch.stack([removed(blobs(s)[:12, :12], 0.5)[0] for s in range(3)])
    masks[1] = False
    whole = impute(x, masks, tolerance=1e-6)
    for i in range(3):
        torch.testing.assert_close(impute(x[i : i + 1], masks[i : i + 1], tolerance=1e-6)[0], whole[i])
    keep = ~masks[:, None].expand_as(x)
    assert torch.equal(whole[keep], x[keep])


def test_nothing_left() -> None:
    with pytest.raises(OptionError, match="nothing to fill them in from"):
        impute(images(2, size=(4, 4)), torch.ones(2, 4, 4, dtype=torch.bool))


def test_under_autocast_and_in_half_precision() -> None:
    x, mask = images(1, size=(16, 16)), removed(blobs()[:16, :16], 0.5)
    expected = impute(x, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(impute(x, mask), expected)
    assert impute(x.bfloat16(), mask).dtype == torch.float32


def test_an_imputation_that_does_not_converge_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    picture, mask = images(1, 1, (SIDE, SIDE)), removed(blobs(), 0.5)
    exact = impute(picture, mask, tolerance=1e-6)
    assert not caplog.records
    monkeypatch.setattr(imputation, "_MOST_STEPS", 4)
    rough = impute(picture, mask, tolerance=1e-6)
    assert [record.getMessage() for record in caplog.records] == ["the imputation of ROAD did not converge in 4 steps"]
    assert 1e-6 < (rough - exact).abs().max() < 0.1
