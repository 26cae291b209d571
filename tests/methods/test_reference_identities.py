"""Identities that the formulas of the oracles must satisfy."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import reference as ref
import torch
from numpy.testing import assert_allclose
from reference_numbers import BIAS, SHAPES, draw, exact, pooled

# Identities


@pytest.mark.parametrize("shape", SHAPES)
def test_closed_forms_of_pooling_and_one_linear_layer(shape):
    activations, weights = np.abs(draw(4, *shape)), draw(4, seed=1)
    score, gradient = pooled(weights)
    gradients, means = gradient(activations), np.array([channel.mean() for channel in activations])
    cam = ref.cam(activations, weights)
    for method in (ref.grad_cam, ref.hires_cam, ref.xgrad_cam):
        exact(method(activations, gradients), cam)
    exact(ref.shapley_cam(activations, gradients, np.zeros(activations.shape * 2)), cam)
    exact(cam.sum() + BIAS, score(activations))
    exact(ref.layer_cam(activations, gradients), ref.cam(activations, np.maximum(weights, 0)))
    exact(ref.grad_cam_elementwise(activations, gradients), ref.layer_cam(activations, gradients))
    exact(ref.grad_cam_plus_plus_weights(activations, gradients), np.maximum(weights, 0) / (2 + weights * means))
    exact(ref.ablation_cam_weights(activations, score), weights * means / abs(score(activations)))
    exact(ref.normalize_minmax(ref.recipro_cam(activations, score)), ref.normalize_minmax(cam))


def test_flatten_and_one_linear_layer():
    activations, weights = draw(3, 2, 2), draw(3, 2, 2, seed=1)
    score = (weights * activations).sum() + BIAS  # the gradient is the weight
    exact(ref.hires_cam(activations, weights).sum() + BIAS, score)
    assert abs(ref.grad_cam(activations, weights).sum() + BIAS - score) > 0.1


def test_which_methods_depend_on_the_scale_of_the_score():
    activations, gradients, image = np.abs(draw(3, 2, 2)), draw(3, 2, 2, seed=1), draw(1, 4, 4, seed=2)
    once, thrice = (ref.score_cam(activations, image, lambda x, c=c: c * float((x * image).sum())) for c in (1, 3))
    assert np.abs(once - thrice).max() > 1e-3
    for method in (ref.grad_cam, ref.hires_cam, ref.xgrad_cam, ref.layer_cam, ref.eigen_grad_cam):
        exact(method(activations, 1e-4 * gradients), 1e-4 * method(activations, gradients))
    small, large = (ref.grad_cam_plus_plus_weights(activations, c * gradients) / c for c in (1e-4, 1))
    assert np.abs(small - large).max() > 0.01


def test_increments_along_a_path_are_complete():
    # y = sum A^3 along a straight path, where G = 3 A^2 at every step
    steps = 2000
    path = [step / steps * draw(2, 3) for step in range(steps + 1)]
    total = sum(ref.hires_cam(new - old, 3 * new**2).sum() for old, new in pairwise(path))
    assert_allclose(total, (path[-1] ** 3).sum(), rtol=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_identities_of_the_gradient_methods(shape):
    activations, gradients = draw(3, *shape), draw(3, *shape, seed=1)
    exact(ref.xgrad_cam(activations, gradients).sum(), (gradients * activations).sum())
    exact(ref.seg_xres_cam(activations, gradients, 1), ref.hires_cam(activations, gradients))
    exact(ref.seg_xres_cam(activations, gradients, shape), ref.grad_cam(activations, gradients))
    exact(ref.smooth_grad_cam_plus_plus(activations, [gradients]), ref.grad_cam_plus_plus(activations, gradients))
    order = [2, 0, 1]
    for method, center in product((ref.eigen_grad_cam, ref.seg_eigen_cam), (False, True)):
        exact(method(activations[order], gradients[order], center), method(activations, gradients, center))
    largest = np.linalg.svd(activations.reshape(3, -1))[1][0]
    exact(np.linalg.norm(ref.eigen_cam(activations)), largest)
    weights = np.linspace(-1, 1, 3)
    exact(ref.eigen_smooth(activations, weights), ref.eigen_cam((activations.T * weights).T))


def test_full_grad_is_complete():
    torch.manual_seed(0)
    layers = [torch.nn.Conv1d(2, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(12, 1)]
    model, image = torch.nn.Sequential(*layers).double(), torch.randn(1, 2, 6, dtype=torch.float64, requires_grad=True)
    convolved = layers[0](image)
    score = layers[3](layers[2](layers[1](convolved)))
    on_image, on_conv, on_score = torch.autograd.grad(score.sum(), [image, convolved, score])
    biases, gradients = [layers[0].bias, layers[3].bias], [on_conv[0], on_score[0]]
    exact(ref.full_grad_sum(image[0], on_image[0], biases, gradients), model(image).item())
    exact(
        ref.full_grad(image[0], on_image[0], biases, gradients),
        ref.full_grad(image[0], on_image[0], biases[:1], gradients[:1]),
    )
