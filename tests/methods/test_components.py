"""Principal components: sign, permutations, both Gram matrices, memory, and maps without structure."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import reference as ref
import torch
from allocations import Allocations
from cases import assert_same
from models import images as draw_images
from networks import blocks
from torch import Tensor
from torch.testing import assert_close

from gradcam_kit import METHODS
from gradcam_kit.methods.arithmetic.components import by_squaring, first_component, fix_sign
from gradcam_kit.methods.kpca_cam import kernel_component


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sign_of_components_does_not_depend_on_the_solver(monkeypatch):
    for shape in ((3, 4, 5, 5), (3, 40, 3, 3)):  # channels are the smaller side, then positions
        maps = draw(*shape)
        expected, kernel = first_component(maps), kernel_component(maps)
        solve = torch.linalg.eigh

        def turned(matrix, solve=solve):
            values, vectors = solve(matrix)
            return torch.return_types.linalg_eigh((values, -vectors))

        monkeypatch.setattr(torch.linalg, "eigh", turned)
        assert_close(first_component(maps), expected)
        assert_close(kernel_component(maps), kernel)
        monkeypatch.undo()
        largest = expected.flatten(1).gather(1, expected.flatten(1).abs().argmax(1, keepdim=True))
        assert (largest > 0).all()
    assert fix_sign(torch.tensor([[1.0, -3.0], [3.0, -1.0], [0.0, 0.0]])).tolist() == [[-1, 3], [3, -1], [0, 0]]


def test_components_of_permuted_samples_and_channels():
    maps = draw(4, 5, 6, 6)
    expected = first_component(maps)
    assert_close(first_component(maps[[2, 0, 3, 1]]), expected[[2, 0, 3, 1]])
    assert_close(first_component(maps[:, [4, 2, 0, 1, 3]]), expected)


@pytest.mark.parametrize("center", [False, True])
def test_both_gram_matrices_give_the_same_component(center):
    wide = draw(2, 60, 3, 4)  # more channels than positions
    narrow = wide.transpose(0, 1)[:8].transpose(0, 1)  # fewer
    for maps in (wide, narrow):
        expected = np.stack([ref.eigen_cam(one, center) for one in maps])
        assert_same(first_component(maps, center), expected)


@pytest.mark.parametrize(("channels", "size"), [(4, (40, 50)), (500, (3, 3))])
def test_component_memory_is_the_smaller_gram_matrix(channels, size):
    maps = draw(1, channels, *size)
    with Allocations(maps) as made:
        first_component(maps)
    assert max(made.sizes) <= maps.numel()
    assert maps.numel() < max(channels, size[0] * size[1]) ** 2 / 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, 0.3, 1e3, 1 / 3])
def test_constant_channels_have_no_centered_component(value, dtype):
    for size in (3, 7, 20):
        scales = torch.tensor([1.0, 0.7, 0.3, 2.1, 0], dtype=dtype).view(1, 5, 1, 1)
        flat = torch.full((1, 5, size, size), value, dtype=dtype) * scales
        assert not first_component(flat, center=True).any()
        assert (first_component(flat) > 0).all()
        for kernel in ("sigmoid", "poly", "rbf", "linear"):
            assert not kernel_component(flat, kernel).any()


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_components_of_tiny_and_huge_activations(scale):
    maps = draw(1, 4, 5, 5).float()
    assert_close(first_component(scale * maps) / scale, first_component(maps), rtol=1e-4, atol=1e-4)


def test_no_sign_depends_on_a_metric():
    for name in [name for name in ("eigen-cam", "eigen-grad-cam", "seg-eigen-cam", "kpca-cam") if name in METHODS]:
        calls = []
        model = blocks()
        handle = model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        METHODS[name](model, "block1").explain(draw_images(2).double(), 1)
        handle.remove()
        assert len(calls) == 1
        assert "metrics" not in inspect.getsource(inspect.getmodule(METHODS[name]))


@pytest.mark.parametrize("channels", [4, 512])
def test_equal_positions_give_equal_values(channels):
    maps = torch.rand(2, channels, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 14, 14)
    component = first_component(maps)
    assert (component.flatten(1).amax(1) - component.flatten(1).amin(1)).max() <= 1e-6 * component.abs().max()


def symmetric(values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix with these eigenvalues, and the eigenvectors."""
    shape = (len(values), len(values))
    draw = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vectors = torch.linalg.qr(draw).Q
    matrix = (vectors * values) @ vectors.mT
    return (matrix + matrix.mT) / 2, vectors


@pytest.mark.parametrize("size", [2, 7, 49, 196])
@pytest.mark.parametrize("share", [0.5, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10])
def test_squaring_tells_eigenvalues_apart_as_exactly_as_lapack(size, share):
    values = 0.5 * torch.rand(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values[0], values[1] = 1, 1 - share
    matrix, vectors = symmetric(values)
    for scale in (1e-30, 1.0, 1e20):
        (largest,), (vector,) = by_squaring(scale * matrix[None])
        assert float((vector * (vector @ vectors[:, 0]).sign() - vectors[:, 0]).norm()) < 2e-14 / share
        assert float(largest / scale) == pytest.approx(1, abs=1e-13)


def test_squaring_of_matrices_that_are_not_definite():
    negative = torch.full((30,), -1.0, dtype=torch.float64)
    negative[4], negative[5] = 0.01, 0.009
    matrix, vectors = symmetric(negative)
    (largest,), (vector,) = by_squaring(matrix[None])
    assert float(largest) == pytest.approx(0.01, rel=1e-9)
    assert float((vector @ vectors[:, 4]).abs()) == pytest.approx(1, abs=1e-12)
    values, vectors = by_squaring(torch.stack([torch.zeros(3, 3), torch.eye(3)]))
    assert values.tolist() == [0, 1]
    assert torch.isfinite(vectors).all()
    assert float(vectors[1].norm()) == pytest.approx(1)


def test_squaring_of_equal_eigenvalues_stays_in_their_space():
    values = torch.tensor([2.0, 2, 2, 1, 0.5, 0.1], dtype=torch.float64)
    matrix, vectors = symmetric(values)
    (largest,), (vector,) = by_squaring(matrix[None])
    assert float(largest) == pytest.approx(2)
    assert float((vector @ vectors[:, :3]).norm()) == pytest.approx(1, abs=1e-12)
