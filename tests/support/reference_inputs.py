"""Slow transcriptions of the methods whose gradients reach the input: full gradients and guided backpropagation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from reference_last_stage import Array, float64, normalize_minmax, relu, upsample


def batch_norm_bias(beta: Any, gamma: Any, mean: Any, variance: Any, eps: float) -> Array:
    """FullGrad's bias of an evaluated batch norm: `β − μγ/√(σ²+ε)`, one value per channel."""
    return float64(beta) - float64(mean) * float64(gamma) / np.sqrt(float64(variance) + eps)


def bias_gradients(bias: Any, gradient: Any) -> Array:
    """`b ⊙ ∂y/∂output`: each channel of `(k, *s)`, or each feature of `(k)`, times its bias."""
    return np.array([b * g for b, g in zip(float64(bias), float64(gradient), strict=True)])


def full_grad_sum(image: Any, image_gradient: Any, biases: Sequence[Any], gradients: Sequence[Any]) -> float:
    """FullGrad before ψ, Proposition 1: `Σ x ⊙ ∂y/∂x + Σ_l Σ b_l ⊙ ∂y/∂output_l` equals y in ReLU networks."""
    total = float((float64(image) * float64(image_gradient)).sum())
    for bias, gradient in zip(biases, gradients, strict=True):
        total += float(bias_gradients(bias, gradient).sum())
    return total


def full_grad(image: Any, image_gradient: Any, biases: Sequence[Any], gradients: Sequence[Any]) -> Array:
    """FullGrad, Srinivas & Fleuret, NeurIPS 2019: `Uψ(∂y/∂x ⊙ x) + Σ_l Σ_k Uψ(b_l ⊙ ∂y/∂output_l)`, at input size.

    ψ = abs, then min–max over all channels of the layer jointly. The input's channels are summed as those of a layer.
    Layers without positions (biases of linear layers) have no map and are skipped.
    """
    image = float64(image)
    terms = [image * float64(image_gradient)]
    terms += [bias_gradients(b, g) for b, g in zip(biases, gradients, strict=True) if float64(g).ndim > 1]
    saliency = np.zeros(image.shape[1:])
    for term in terms:
        for channel in normalize_minmax(np.abs(term)):
            saliency += upsample(channel, image.shape[1:])
    return saliency


def guided_backprop(layers: Sequence[torch.nn.Module], image: Any, target: int) -> Array:
    """Guided backprop, Springenberg et al. 2015, 1412.6806: ReLU's backward also drops negative gradients.

    `layers` run one after the other and end in logits. The signed `(c, *t)` is returned. At every ReLU, by hand:
    `R_in = (input > 0) · (R_out > 0) · R_out`; every other layer keeps its own derivative.
    """
    value = torch.from_numpy(float64(image))[None]
    steps = []
    for layer in layers:
        layer = copy.deepcopy(layer).double().eval()
        steps.append((layer, value))
        value = value.clamp(min=0) if isinstance(layer, torch.nn.ReLU) else layer(value).detach()
    gradient = torch.zeros_like(value)
    gradient[0, target] = 1.0
    for layer, entered in reversed(steps):
        if isinstance(layer, torch.nn.ReLU):
            gradient = torch.where((entered > 0) & (gradient > 0), gradient, torch.zeros_like(gradient))
        else:
            leaf = entered.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(layer(leaf), leaf, gradient)
    return float64(gradient[0])


def guided_grad_cam(guided: Any, saliency: Any) -> Array:
    """Guided Grad-CAM, Selvaraju et al., ICCV 2017: guided backprop `(c, *t)` ⊙ U(ReLU(Grad-CAM)).

    Ambiguous: the Grad-CAM map is not normalized, which only scales the result.
    """
    guided = float64(guided)
    factor = upsample(relu(saliency), guided.shape[1:])
    return np.array([channel * factor for channel in guided])
