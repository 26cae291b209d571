"""KPCA-CAM marks what stands out from the mean activation, whatever the kernel and the kind of activations."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from cases import assert_same
from torch import Tensor

from gradcam_kit import METHODS
from gradcam_kit.methods.kpca_cam import kernel_component

KERNELS = ("sigmoid", "poly", "rbf", "linear")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scene(kind: str) -> Tensor:
    """Activations `(3, 64, 7, 7)` far from the origin, with an object of 3 x 3 positions that has more of them."""
    noise, pattern = draw(3, 64, 7, 7), draw(1, 64, 1, 1, seed=1).abs()
    object_ = torch.zeros(7, 7, dtype=torch.float64)
    object_[1:4, 2:5] = 1
    raw = 2 * pattern * (1 + 2 * object_) + 0.5 * noise
    return {"relu": raw.clamp(min=0), "gelu": torch.nn.functional.gelu(raw - 1), "tokens": raw - 3}[kind]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["relu", "gelu", "tokens"])
def test_the_object_is_marked_and_not_the_background(kernel, kind):
    maps = scene(kind)
    found = kernel_component(maps, kernel)
    for one in found:
        assert one[1:4, 2:5].mean() > 0 > one[5:].mean()
    expected = np.stack([ref.kpca_cam(one, kernel) for one in maps])
    assert_same(found, expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_constant_added_to_a_channel_changes_nothing(kernel):
    maps = draw(2, 5, 4, 6)
    assert_same(kernel_component(maps + 3 * draw(1, 5, 1, 1, seed=2), kernel), kernel_component(maps, kernel).numpy())


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_method_takes_every_kernel(kernel):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    cam = METHODS["kpca-cam"](model.eval().double(), "1", kernel=kernel)
    images = draw(2, 3, 9, 9)
    activations = model[:2](images).detach()
    assert_same(
        cam.explain(images, lambda y: y[:, 0, 0, 0]).saliency["1"], kernel_component(activations, kernel).numpy()
    )
