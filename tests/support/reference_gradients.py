"""Slow transcriptions of the methods that need activations `(k, *s)` and gradients `(k, *s)` of one sample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from reference_last_stage import Array, float64, positions, relu, weighted_sum


def grad_cam_weights(gradients: Any) -> Array:
    """Grad-CAM, Selvaraju et al., ICCV 2017, Eq. 1: `w_k = (1/Z) Σ_s G_k`."""
    gradients = float64(gradients)
    weights = np.zeros(len(gradients))
    for k in range(len(gradients)):
        for s in positions(gradients):
            weights[k] += gradients[(k, *s)]
        weights[k] /= len(positions(gradients))
    return weights


def grad_cam(activations: Any, gradients: Any) -> Array:
    """Grad-CAM, Selvaraju et al., ICCV 2017, Eq. 2 before its ReLU: `Σ_k w_k A_k`."""
    return weighted_sum(grad_cam_weights(gradients), activations)


def hires_cam(activations: Any, gradients: Any) -> Array:
    """HiResCAM, Draelos & Carin 2020, 2011.08891: `Σ_k G_k ⊙ A_k`."""
    activations, gradients = float64(activations), float64(gradients)
    saliency = np.zeros(activations.shape[1:])
    for s in positions(activations):
        for k in range(len(activations)):
            saliency[s] += gradients[(k, *s)] * activations[(k, *s)]
    return saliency


def grad_cam_elementwise(activations: Any, gradients: Any) -> Array:
    """Born in pytorch-grad-cam, no paper: `Σ_k ReLU(G_k ⊙ A_k)`."""
    activations, gradients = float64(activations), float64(gradients)
    saliency = np.zeros(activations.shape[1:])
    for s in positions(activations):
        for k in range(len(activations)):
            saliency[s] += max(gradients[(k, *s)] * activations[(k, *s)], 0.0)
    return saliency


def grad_cam_plus_plus_weights(activations: Any, gradients: Any, variant: str = "paper") -> Array:
    """Grad-CAM++, Chattopadhay et al., WACV 2018, Eq. 19: `α = G² / (2G² + (Σ_s A_k) G³)`, `w_k = Σ_s α ReLU(G)`.

    A denominator of exactly 0 is replaced by 1, as in the authors' code. Ambiguous: variant "authors" divides α by its
    sum over the positions of the channel with G > 0, as their code does and the paper does not (a sum of 0 by 1).
    """
    activations, gradients = float64(activations), float64(gradients)
    weights = np.zeros(len(activations))
    for k in range(len(activations)):
        total = sum(activations[(k, *s)] for s in positions(activations))
        alphas = {}
        for s in positions(activations):
            g = gradients[(k, *s)]
            denominator = 2 * g**2 + total * g**3
            alphas[s] = g**2 / (denominator if denominator != 0 else 1.0)
        if variant == "authors":
            alpha_sum = sum(alphas[s] for s in positions(activations) if gradients[(k, *s)] > 0)
            alphas = {s: alpha / (alpha_sum if alpha_sum != 0 else 1.0) for s, alpha in alphas.items()}
        elif variant != "paper":
            raise ValueError(f"unknown variant {variant!r}")
        weights[k] = sum(alphas[s] * max(gradients[(k, *s)], 0.0) for s in positions(activations))
    return weights


def grad_cam_plus_plus(activations: Any, gradients: Any, variant: str = "paper") -> Array:
    """Grad-CAM++, Chattopadhay et al., WACV 2018: `Σ_k w_k A_k` before the ReLU, weights of Eq. 19."""
    return weighted_sum(grad_cam_plus_plus_weights(activations, gradients, variant), activations)


def smooth_grad_cam_plus_plus(activations: Any, noisy_gradients: Any) -> Array:
    """Smooth Grad-CAM++, Omeiza et al. 2019, 1908.01224: Grad-CAM++ with mean G, G², G³ over noisy inputs, clean A.

    Unconfirmed: the numerator is the mean of the squares, and `Σ_s A_k` multiplies the mean of the cubes.
    """
    activations = float64(activations)
    samples = [float64(one) for one in noisy_gradients]
    weights = np.zeros(len(activations))
    for k in range(len(activations)):
        total = sum(activations[(k, *s)] for s in positions(activations))
        for s in positions(activations):
            first = sum(g[(k, *s)] for g in samples) / len(samples)
            second = sum(g[(k, *s)] ** 2 for g in samples) / len(samples)
            third = sum(g[(k, *s)] ** 3 for g in samples) / len(samples)
            denominator = 2 * second + total * third
            weights[k] += second / (denominator if denominator != 0 else 1.0) * max(first, 0.0)
    return weighted_sum(weights, activations)


def xgrad_cam_weights(activations: Any, gradients: Any, guard: float = 1e-6) -> Array:
    """XGrad-CAM, Fu et al., BMVC 2020: `w_k = Σ_s(G_k ⊙ A_k) / Σ_s A_k`.

    The paper has no guard. Ambiguous: here `|Σ_s A| ≤ guard · Σ_s |A|` gives weight 0.
    """
    activations, gradients = float64(activations), float64(gradients)
    weights = np.zeros(len(activations))
    for k in range(len(activations)):
        product = total = magnitude = 0.0
        for s in positions(activations):
            product += gradients[(k, *s)] * activations[(k, *s)]
            total += activations[(k, *s)]
            magnitude += abs(activations[(k, *s)])
        weights[k] = product / total if abs(total) > guard * magnitude else 0.0
    return weights


def xgrad_cam(activations: Any, gradients: Any, guard: float = 1e-6) -> Array:
    """XGrad-CAM, Fu et al., BMVC 2020, 2008.02312: `Σ_k w_k A_k`."""
    return weighted_sum(xgrad_cam_weights(activations, gradients, guard), activations)


def layer_cam(activations: Any, gradients: Any) -> Array:
    """Layer-CAM, Jiang et al., TIP 2021: `Σ_k ReLU(G_k) ⊙ A_k`; the paper's final ReLU is in the last stage."""
    activations, gradients = float64(activations), float64(gradients)
    saliency = np.zeros(activations.shape[1:])
    for s in positions(activations):
        for k in range(len(activations)):
            saliency[s] += max(gradients[(k, *s)], 0.0) * activations[(k, *s)]
    return saliency


def seg_xres_cam(activations: Any, gradients: Any, window: int | tuple[int, ...], pool: str = "mean") -> Array:
    """Seg-XRes-CAM, Hasany et al., CVPRW 2023: HiResCAM with G pooled over blocks of `window` positions per axis.

    Every position gets the mean or maximum of its own block; the last, ragged block counts only positions that exist.
    """
    activations, gradients = float64(activations), float64(gradients)
    windows = (window,) * (activations.ndim - 1) if isinstance(window, int) else window
    pooled = np.zeros_like(gradients)
    for k in range(len(gradients)):
        for s in positions(gradients):
            block = [
                gradients[(k, *other)]
                for other in positions(gradients)
                if all(a // p == b // p for a, b, p in zip(s, other, windows, strict=True))
            ]
            pooled[(k, *s)] = {"mean": sum(block) / len(block), "max": max(block)}[pool]
    return hires_cam(activations, pooled)


def shapley_cam(activations: Any, gradients: Any, hessian: Any) -> Array:
    """Shapley-CAM, Cai 2025, 2501.06261: `w_k = mean_s(G − ½ H A)_k`, `Σ_k w_k A_k`.

    `hessian` is `(k, *s, k, *s)`: second derivatives of the score with respect to the activations.
    """
    activations, gradients, hessian = float64(activations), float64(gradients), float64(hessian)
    corrected = np.zeros_like(gradients)
    for row in np.ndindex(*activations.shape):
        product = sum(hessian[(*row, *column)] * activations[column] for column in np.ndindex(*activations.shape))
        corrected[row] = gradients[row] - 0.5 * product
    return grad_cam(activations, corrected)


def expected_grad_cam(activations: Any, baseline_activations: Any, path_gradients: Any) -> Array:
    """Expected Grad-CAM, Buono et al. 2024, 2406.01274: the mean of `Σ_k w_k(x_i) (A_k(x) − A_k(x'_i))` over samples.

    Per sample i the activations of a baseline x'_i and the gradients at a point x_i between it and the image.
    Unconfirmed: w is Grad-CAM's mean of the gradients, and the term that it is multiplied by.
    """
    activations = float64(activations)
    total = np.zeros(activations.shape[1:])
    for baseline, gradients in zip(baseline_activations, path_gradients, strict=True):
        total += weighted_sum(grad_cam_weights(gradients), activations - float64(baseline))
    return total / len(baseline_activations)


def integrated_grad_cam(path_activations: Any, path_gradients: Any, start_activations: Any) -> Array:
    """Integrated Grad-CAM, Sattarzadeh et al., ICASSP 2021: `mean_l ReLU(Σ_k w_k(x_l) (A_k(x_l) − A_k(x_0)))`.

    One pair of activations and gradients per step l = 1 … steps. Unconfirmed: w is Grad-CAM's mean of the gradients,
    and the difference is to the fixed start.
    """
    start = float64(start_activations)
    total = np.zeros(start.shape[1:])
    for activations, gradients in zip(path_activations, path_gradients, strict=True):
        total += relu(weighted_sum(grad_cam_weights(gradients), float64(activations) - start))
    return total / len(path_activations)


def balanced_cam(activations: Any, balanced_gradients: Any, reference: str = "mean") -> Array:
    """BalancedCAM, after LibraGrad, Mehri et al., CVPR 2025, 2411.16760: `Σ_k G_k ⊙ (A_k - R_k)`.

    G are the gradients of a network whose factors are constant, R_k is 0 or the mean of A_k over the positions.
    """
    activations, gradients = float64(activations), float64(balanced_gradients)
    saliency = np.zeros(activations.shape[1:])
    for k in range(len(activations)):
        values = [activations[(k, *s)] for s in positions(activations)]
        average = sum(values) / len(values) if reference == "mean" else 0.0
        for s in positions(activations):
            saliency[s] += gradients[(k, *s)] * (activations[(k, *s)] - average)
    return saliency


def odam(activations: Any, gradients: Any, sigma: float = 1.0) -> Array:
    """ODAM, Zhao & Chan, ICLR 2023: `sum_k blur(G_k) * A_k`.

    Unconfirmed: how the paper takes the width of the Gaussian from the size of the object. Here it is given in cells,
    the window is three of them to each side, and borders are mirrored without the edge cell. 0 = the released code,
    which smooths nothing.
    """
    activations, gradients = float64(activations), float64(gradients)
    reach = math.ceil(3 * sigma)
    for axis in range(1, gradients.ndim):
        length, blurred = gradients.shape[axis], np.zeros_like(gradients)
        weights = [math.exp(-(d**2) / (2 * sigma**2)) if sigma else 1.0 for d in range(-reach, reach + 1)]
        for s in positions(gradients):
            total = np.zeros(len(gradients))
            for d, weight in zip(range(-reach, reach + 1), weights, strict=True):
                place, period = s[axis - 1] + d, max(2 * (length - 1), 1)
                place = min(place % period, period - place % period) if length > 1 else 0
                total += weight / sum(weights) * gradients[(slice(None), *s[: axis - 1], place, *s[axis:])]
            blurred[(slice(None), *s)] = total
        gradients = blurred
    return hires_cam(activations, gradients)
