"""The imputation of ROAD equals a direct solution of its system, in float32 and at every shape."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference_metrics as ref
import scipy.sparse
import scipy.sparse.linalg
import skimage.data
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


@pytest.mark.parametrize("offset", [0.0, -100.0, 1000.0])
def test_what_is_added_to_the_units_changes_nothing(offset: float) -> None:
    mask, image = removed(blobs(), 0.5), images(1, size=(SIDE, SIDE))
    found = impute(image + offset, mask)
    assert (found - offset - impute(image, mask)).abs().max() < 2e-3  # float32 itself has 6e-5 at 1000
    assert torch.equal(found[0][:, ~mask[0]], (image + offset)[0][:, ~mask[0]])


def kinds(side: tuple[int, int] = (SIDE, SIDE)) -> dict[str, Tensor]:
    """Masks `(1, h, w)` from smooth to fine."""
    coffee = torch.from_numpy(skimage.data.coffee()).double().mean(2)
    photograph = interpolate(coffee[None, None], size=side, mode="bilinear", antialias=True)[0, 0]
    draws = torch.rand(side, generator=torch.Generator().manual_seed(0))
    rows, columns = (torch.arange(length) for length in side)
    return {
        "a heatmap": removed(interpolate(blobs()[None, None], size=side)[0, 0], 0.5),
        "the rest of a heatmap": removed(-interpolate(blobs(1)[None, None], size=side)[0, 0], 0.8),
        "a photograph": removed(-photograph, 0.6),
        "all but few": removed(draws, 0.99),
        "a chessboard": ((rows[:, None] + columns) % 2 == 0)[None],
        "stripes": (rows[:, None] % 4 + 0 * columns != 0)[None],
        "a quarter": ((rows[:, None] < side[0] // 2) & (columns < side[1] // 2))[None],
        "the left": (0 * rows[:, None] + columns < side[1] // 4)[None],
        "blocks": ((rows[:, None] // 32 + columns // 32) % 2 == 0)[None],
        "cells": removed(interpolate(blobs()[None, None, ::32, ::32], size=side)[0, 0], 0.5),
    }


@pytest.mark.parametrize("kind", kinds())
def test_few_steps_are_enough(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain conjugate gradients take hundreds of steps for a mask like a heatmap."""
    steps, cycle = [], imputation._cycle
    monkeypatch.setattr(
        imputation, "_cycle", lambda levels, residual: steps.append(len(residual[0, 0])) or cycle(levels, residual)
    )
    impute(images(1, size=(SIDE, SIDE)), kinds()[kind])
    assert 1 < steps.count(SIDE) < 7


@pytest.mark.parametrize(
    "size",
    [(61, 97), (65, 65), *(pytest.param((n, n), marks=pytest.mark.exhaustive) for n in (112, SIDE, 129))],
)
@pytest.mark.parametrize("kind", kinds())
def test_a_cycle_is_what_conjugate_gradients_need(kind: str, size: tuple[int, int]) -> None:
    """Symmetric, and the eigenvalues of cycle and system lie above 0 and at most a little above 1.

    Above 2 a second visit of a coarser grid would turn their sign, and what comes out would be anything.
    """
    mask = kinds(size)[kind][None].double()
    levels = imputation._levels(mask, 1, imputation.Workspace())
    one, other = (images(1, c=1, size=size, seed=seed).double() * mask for seed in range(2))

    def cycle(residual: Tensor) -> Tensor:
        return imputation._cycle(levels, residual).clone()

    def system(values: Tensor) -> Tensor:
        return mask * (levels[0].weight * values - levels[0].stencils.neighbors(values))

    assert float((cycle(one) * other).sum()) == pytest.approx(float((one * cycle(other)).sum()), rel=1e-9)
    lowest = one
    for _ in range(30):
        one = cycle(system(one / one.norm()))
        lowest = lowest / lowest.norm()
        lowest = lowest - cycle(system(lowest))  # grows along the eigenvectors that are farthest from 1
    assert 0.9 < float(one.norm()) < 1.02
    energy = system(lowest)
    assert 0.1 < float((cycle(energy) * energy).sum() / (lowest * energy).sum()) < 1


@pytest.mark.parametrize("size", [(SIDE, SIDE), (256, 256), (257, 257)])
@pytest.mark.parametrize("kind", ["a quarter", "the left", "blocks", "cells"])
def test_what_is_the_same_everywhere_stays_so(kind: str, size: tuple[int, int]) -> None:
    found = impute(torch.ones(1, 1, *size), kinds(size)[kind])
    assert float((found - 1).abs().max()) < 1e-3


def test_memory_that_is_used_again_leaves_no_trace() -> None:
    x, room = images(4, size=(20, 24)), imputation.Workspace()
    masks = torch.cat([removed(blobs(s)[:20, :24], 0.5) for s in range(4)])
    for rows, dtype in (
        ([0, 1], torch.float32),
        ([2, 3], torch.float32),
        ([0, 1], torch.float64),
        ([3], torch.float64),
    ):
        found = imputation.imputed(x[rows].to(dtype), masks[rows], 1e-6, room)
        torch.testing.assert_close(found, impute(x[rows].to(dtype), masks[rows], tolerance=1e-6))


def test_a_single_position_that_is_known_stays() -> None:
    assert impute(torch.full((1, 3, 1, 1), 5.0), torch.zeros(1, 1, 1, dtype=torch.bool)).flatten().tolist() == [5, 5, 5]


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
    with pytest.raises(OptionError, match="nothing to impute from"):
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
