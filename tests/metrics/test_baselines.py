"""Maps that know nothing of the model: each is what it says, by other libraries' functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import images
from scipy import ndimage, stats
from torch import Tensor

from gradcam_kit.metrics import BASELINES


def edges(image: Tensor) -> np.ndarray:
    gray = image.double().numpy().mean(0)
    size = np.sqrt(sum(ndimage.sobel(gray, axis, mode="nearest") ** 2 for axis in range(gray.ndim)))
    return (size - size.min()) / (size.max() - size.min())


def center(image: Tensor) -> np.ndarray:
    """A Gaussian whose deviation is a quarter of each side, measured between the outer positions."""
    grid = np.meshgrid(*(np.arange(length) for length in image.shape[1:]), indexing="ij")
    sides = [length - 1 for length in image.shape[1:]]
    away = sum(((place - side / 2) / (side / 4)) ** 2 for place, side in zip(grid, sides, strict=True))
    return np.exp(-away / 2)


@pytest.mark.parametrize("size", [(21,), (13, 18), (7, 9, 8)])
@pytest.mark.parametrize(("name", "expected"), [("edges", edges), ("center", center)])
def test_the_map_is_its_definition(name, expected, size):
    x = images(3, size=size)
    found = BASELINES[name](x).numpy()
    for own, image in zip(found, x, strict=True):
        np.testing.assert_allclose(own, expected(image), atol=1e-5)


def test_random_maps_are_even_and_ones_are_ones():
    x = images(4, size=(40, 50))
    drawn = BASELINES["random"](x, 3)
    assert stats.kstest(drawn.flatten().numpy(), "uniform").pvalue > 0.001
    assert np.abs(np.corrcoef(drawn.flatten(1).numpy()) - np.eye(4)).max() < 0.1
    assert not torch.equal(drawn, BASELINES["random"](x, 4))
    assert torch.equal(BASELINES["ones"](x), torch.ones(4, 40, 50))
