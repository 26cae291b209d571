"""Slow transcriptions of the principal-component methods and of the matrix factorization; one sample `(k, *s)`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from reference_last_stage import Array, float64, positions


def fix_sign(values: Any) -> Array:
    """The map is flipped when its value of largest magnitude is negative (no flip when |min| = max)."""
    values = float64(values)
    return -values if -values.min() > values.max() else values


def position_rows(activations: Any) -> Array:
    """Matrix with one row per position and one column per channel."""
    activations = float64(activations)
    return np.array([[activations[(k, *s)] for k in range(len(activations))] for s in positions(activations)])


def eigen_cam(activations: Any, center: bool = False) -> Array:
    """Eigen-CAM, Muhammad & Yeasin, IJCNN 2020, 2008.00299: `A v₁`, v₁ the first right singular vector; sign fixed.

    Ambiguous: the paper does not center; `center=True` subtracts each channel's mean over the positions first.
    Constant channels leave only rounding errors when centered: they give the zero map.
    """
    rows = position_rows(activations)
    if center:
        rounding = 1e-12 * np.abs(rows).max()
        rows = rows - rows.mean(axis=0, keepdims=True)
        rows[np.abs(rows) <= rounding] = 0.0
    first_right_vector = np.linalg.svd(rows)[2][0]
    return fix_sign((rows @ first_right_vector).reshape(float64(activations).shape[1:]))


def eigen_grad_cam(activations: Any, gradients: Any, center: bool = False) -> Array:
    """Eigen-Grad-CAM, born in pytorch-grad-cam, no paper: Eigen-CAM of `G ⊙ A`. Ambiguous: centering, off here."""
    return eigen_cam(float64(gradients) * float64(activations), center)


def seg_eigen_cam(activations: Any, gradients: Any, center: bool = False) -> Array:
    """Seg-Eigen-CAM, Chung & Ying, Applied Sciences 2025: Eigen-CAM of `|G| ⊙ A`, flipped if |min| > |max|."""
    return eigen_cam(np.abs(float64(gradients)) * float64(activations), center)


def eigen_smooth(activations: Any, weights: Any, center: bool = False) -> Array:
    """Option of the weighted sums, no paper: Eigen-CAM of `w_k A_k`, weights `(k)` or `(k, *s)`."""
    activations, weights = float64(activations), float64(weights)
    if weights.ndim == 1:
        weights = weights.reshape(-1, *[1] * (activations.ndim - 1))
    return eigen_cam(weights * activations, center)


def kernel_value(first: Any, second: Any, kernel: str, gamma: float) -> float:
    """Kernel of two rows: "linear" `⟨a, b⟩`, "sigmoid" `tanh(γ⟨a, b⟩ + 1)`, "poly" `(γ⟨a, b⟩ + 1)³`,
    "rbf" `exp(−γ|a − b|²)`.
    """
    product = sum(a * b for a, b in zip(first, second, strict=True))
    distance = sum((a - b) ** 2 for a, b in zip(first, second, strict=True))
    return {
        "linear": lambda: product,
        "sigmoid": lambda: math.tanh(gamma * product + 1),
        "poly": lambda: (gamma * product + 1) ** 3,
        "rbf": lambda: math.exp(-gamma * distance),
    }[kernel]()


def kpca_cam(activations: Any, kernel: str = "sigmoid", gamma: float | None = None) -> Array:
    """KPCA-CAM, Karmani et al., MMSP 2024, 2410.00267: `√λ₁ u₁` of the doubly centered kernel matrix; sign fixed.

    The mean row is subtracted first. Unconfirmed: this, γ = 1/k and the offset 1 are the common port's.
    Ambiguous: λ₁ is the largest, not the largest in magnitude (a sigmoid kernel is not positive definite), and
    λ₁ ≤ 0 gives the zero map.
    """
    rows = position_rows(activations)
    rows = rows - rows.mean(axis=0, keepdims=True)
    gamma = 1 / rows.shape[1] if gamma is None else gamma
    matrix = np.array([[kernel_value(a, b, kernel, gamma) for b in rows] for a in rows])
    centered = matrix - matrix.mean(axis=0, keepdims=True) - matrix.mean(axis=1, keepdims=True) + matrix.mean()
    eigenvalues, eigenvectors = np.linalg.eigh(centered)
    scale = math.sqrt(eigenvalues[-1]) if eigenvalues[-1] > 1e-12 * np.abs(matrix).max() else 0.0
    return fix_sign((scale * eigenvectors[:, -1]).reshape(float64(activations).shape[1:]))


def dff_rows(batch: Any) -> Array:
    """Deep feature factorization, Collins et al., ECCV 2018: `(n·Z, k)`, one row per sample and position.

    A channel's minimum over all rows is subtracted. Ambiguous: only from channels
    that have a negative value; the others stay as they are.
    """
    rows = np.concatenate([position_rows(one) for one in batch])
    return rows - np.minimum(rows.min(axis=0, keepdims=True), 0.0)


def nmf_objective(rows: Any, positions_by_component: Any, component_by_channel: Any) -> float:
    """`‖V − H W‖²` of deep feature factorization, Collins et al., ECCV 2018."""
    residual = float64(rows) - float64(positions_by_component) @ float64(component_by_channel)
    return float((residual**2).sum())


def nmf_step(rows: Any, positions_by_component: Any, component_by_channel: Any) -> tuple[Array, Array]:
    """One multiplicative update (Lee & Seung): `H ← H ⊙ VWᵀ / HWWᵀ`, then `W ← W ⊙ HᵀV / HᵀHW`; 0/0 stays 0."""
    v, h, w = float64(rows), float64(positions_by_component), float64(component_by_channel)
    above, below = v @ w.T, h @ w @ w.T
    for index in np.ndindex(*h.shape):
        h[index] *= above[index] / below[index] if below[index] > 0 else 0.0
    above, below = h.T @ v, h.T @ h @ w
    for index in np.ndindex(*w.shape):
        w[index] *= above[index] / below[index] if below[index] > 0 else 0.0
    return h, w
