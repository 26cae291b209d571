"""Numbers to check by hand: for each name a call of an oracle, and its result worked out on paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import reference as ref
from numpy.testing import assert_allclose

A = np.array([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, 1.0]]])
G = np.array([[[1.0, 0.0], [0.0, -3.0]], [[2.0, 2.0], [2.0, 2.0]]])
ZEROS = np.zeros((2, 2))
LOGITS = [4.0, 3.0, 0.0, 9.0]

BY_HAND: dict[str, tuple[Callable[[], Any], Any]] = {
    "relu": (lambda: ref.relu([-1, 0, 2]), [0, 0, 2]),
    "normalize_minmax": (lambda: ref.normalize_minmax([[1, 2], [3, 5]]), [[0, 0.25], [0.5, 1]]),
    "normalize_max": (lambda: ref.normalize_max([[1, 2], [3, 5]]), [[0.2, 0.4], [0.6, 1]]),
    "normalize_max negative": (lambda: ref.normalize_max([-2, -1]), [0, 0]),
    # normalized and upsampled: (0, 1/4, 3/4, 3/4, 1/4, 0) and (1, 1, 2/3, 1/3, 0, 0)
    "heatmap": (lambda: ref.heatmap([[0, 4, 0], [1, 0]], (6,)), np.array([12, 15, 17, 13, 3, 0]) / 17),
    "score_cam_mask": (lambda: ref.score_cam_mask([0, 4, 0], (6,)), [0, 1 / 3, 1, 1, 1 / 3, 0]),
    "upsample": (lambda: ref.upsample([0, 4], (4,)), [0, 1, 3, 4]),
    "downsample": (lambda: ref.upsample([0, 1, 2, 3], (2,)), [0.5, 2.5]),
    "upsample one axis": (lambda: ref.upsample([[0, 4], [8, 12]], (4, 2)), [[0, 4], [2, 6], [6, 10], [8, 12]]),
    "grad_cam": (lambda: ref.grad_cam(A, G), [[-0.5, 1], [-1.5, 0]]),  # weights -1/2, 2
    "hires_cam": (lambda: ref.hires_cam(A, G), [[1, 2], [0, -10]]),
    "grad_cam_elementwise": (lambda: ref.grad_cam_elementwise(A, G), [[1, 2], [0, 2]]),
    "layer_cam": (lambda: ref.layer_cam(A, G), [[1, 2], [0, 2]]),
    "layer_cam signed": (lambda: ref.layer_cam(-A, G), [[-1, -2], [0, -2]]),
    "xgrad_cam": (lambda: ref.xgrad_cam(A, G), -1.1 * A[0] + 2 * A[1]),  # (1 - 12) / 10, 4 / 2
    "xgrad_cam small": (lambda: ref.xgrad_cam_weights(1e-9 * A, G), [-1.1, 2]),
    "xgrad_cam guard": (lambda: ref.xgrad_cam([[1.0, -1.0], [0.0, 0.0], [1.0, 3.0]], np.ones((3, 2))), [1, 3]),
    # alpha = 1 / (2 + G sum A) where G is not 0: 1/12 at G = 1, and 1/6 four times at G = 2
    "grad_cam_plus_plus": (lambda: ref.grad_cam_plus_plus(A, G), A[0] / 12 + 4 / 3 * A[1]),
    "authors": (lambda: ref.grad_cam_plus_plus_weights(A, G, "authors"), [1, 2]),  # alphas 1; 1/4 four times
    # alphas 1/3 and 1/4, divided by their sum: 4/7 and 3/7
    "authors mixed": (lambda: ref.grad_cam_plus_plus_weights([[1.0, 0.0]], [[1.0, 2.0]], "authors"), [10 / 7]),
    "denominator 0": (lambda: ref.grad_cam_plus_plus_weights([[-2.0, 0.0]], [[1.0, 0.0]]), [1]),
    "smooth++": (lambda: ref.smooth_grad_cam_plus_plus([[1.0, 1.0]], [[[1.0, 0.0]], [[3.0, 0.0]]]), [5 / 19, 5 / 19]),
    "xres mean": (lambda: ref.seg_xres_cam([[1, 1, 1]], [[1, 3, 7]], 2), [2, 2, 7]),
    "xres max": (lambda: ref.seg_xres_cam([[1, 1, 1]], [[1, 3, 7]], 2, "max"), [3, 3, 7]),
    "xres window": (lambda: ref.seg_xres_cam(np.ones((1, 2, 2)), [[[1, 2], [3, 5]]], (2, 1)), [[2, 3.5], [2, 3.5]]),
    # y = a^2 + a b at a = 1, b = 2: G = (4, 1), H = ((2, 1), (1, 0)), G - HA/2 = (2, 1/2)
    "shapley_cam": (lambda: ref.shapley_cam([[1], [2]], [[4], [1]], np.reshape([2, 1, 1, 0], (2, 1, 2, 1))), [3]),
    "integrated": (lambda: ref.integrated_grad_cam([A, 3 * A], [G, -G], A), [[0.5, 0], [1.5, 0]]),
    # weights -1/2 and 2 of the differences 0 and A, and of A and 0
    "expected": (lambda: ref.expected_grad_cam(A, [A, 0 * A], [G, G]), [[-0.25, 0.5], [-0.75, 0]]),
    "cam": (lambda: ref.cam(A, [4, -8]), [[1, 0], [3, 2]]),
    "einsum_cam": (lambda: ref.einsum_cam(A, [[4, 0], [0, 8]], [1, -1]), [[1, 0], [3, 2]]),
    "without head": (lambda: ref.einsum_cam_without_head(A, [[1, 3], [-1, 0]]), 2 * A[0] - A[1] / 2),
    "transposed": (lambda: ref.einsum_cam_without_head(A, [[1, 3], [-1, 0]], 1), 1.5 * A[1]),
    "fem": (lambda: ref.fem([[0, 0, 0, 8], [5, 5, 5, 5]], 1.0), [0, 0, 0, 2]),  # 8 > 2 + sqrt(12), one of four
    "fem none": (lambda: ref.fem([[0, 0, 0, 8]], 2.0), [0, 0, 0, 0]),
    "lafam": (lambda: ref.lafam(A), [[0.5, 1.5], [1.5, 2.5]]),
    "random_cam": (lambda: ref.random_cam(A, [1, -1]), [[1, 1], [3, 3]]),
    "sign": (lambda: ref.fix_sign([-3, 2]), [3, -2]),
    "sign of a tie": (lambda: ref.fix_sign([-3, 3]), [-3, 3]),
    "eigen_cam": (lambda: ref.eigen_cam(-np.array([[3.0, 6.0], [4.0, 8.0]])), [5, 10]),  # rank 1: (3, 4) x (-1, -2)
    "eigen center": (lambda: ref.eigen_cam([[3.0, 6.0], [4.0, 8.0]], center=True), [-2.5, 2.5]),
    "eigen constant": (lambda: ref.heatmap([ref.eigen_cam([[0.1] * 6], center=True)], (6,), "max"), [0] * 6),
    "eigen_grad_cam": (lambda: ref.eigen_grad_cam([[1.0, 2.0]], [[1.0, -2.0]]), [-1, 4]),
    "seg_eigen_cam": (lambda: ref.seg_eigen_cam([[1.0, 2.0]], [[1.0, -2.0]]), [1, 4]),
    "eigen_smooth": (lambda: ref.eigen_smooth([[3.0, 6.0], [1.0, 2.0]], [1, 4]), [5, 10]),
    "is_cam linear": (lambda: ref.is_cam_factors(4), [0.25, 0.5, 0.75, 1]),
    "is_cam printed": (lambda: ref.is_cam_factors(10, "printed")[-1], 4.5),
    "is_cam cumulative": (lambda: ref.is_cam_factors(10, "cumulative")[-1], 5.5),
    "guided_grad_cam": (lambda: ref.guided_grad_cam([[[1.0, -2.0]]], [[-3.0, 4.0]]), [[[0, -8]]]),
    "batch_norm_bias": (lambda: ref.batch_norm_bias([1.0], [3.0], [4.0], [3.0], 1.0), [-5]),
    # x gx = (2, -1) -> (1, 0); b g of both channels jointly: |(2, 4)|, |(6, 0)| -> (1/3, 2/3) + (1, 0)
    "full_grad": (lambda: ref.full_grad([[1, 1]], [[2, -1]], [[2, -1]], [[[1, 2], [6, 0]]]), [7 / 3, 2 / 3]),
    "finer references": (lambda: ref.finer_references(LOGITS, 0), [1, 2, 3]),
    "finer two classes": (lambda: ref.finer_references(LOGITS[:2], 1), [0]),
    "finer softmax": (lambda: ref.finer_score(LOGITS[:3], 0), (np.exp(3) * 1 + 1 * 4) / (np.exp(3) + 1)),
    "finer alpha": (lambda: ref.finer_score(LOGITS[:2], 0, alpha=0.5), 2.5),
    "finer mean": (lambda: ref.finer_score(LOGITS, 0, weighting="mean"), 4 - 0.6 * 4),
    "one against one": (lambda: ref.logit_difference(LOGITS, 0, 3), -5),
    "one against the rest": (lambda: ref.logit_difference(LOGITS, 1), 3 - 13 / 3),
    "region": (lambda: ref.segmentation_score([[1, 2, 3], [4, 5, 6]], 1, [1, 0, 1]), 10),
    "winsor mean": (lambda: ref.winsor_importance([-1, 2, 5]), 2),
    "winsor max": (lambda: ref.winsor_importance([-1, 2, 5], "max"), 5),
    "winsor l2": (lambda: ref.winsor_importance([-1, 2, 5], "l2"), 30**0.5),
    "winsor negative": (lambda: ref.winsor_importance([-1, -2]), 0),
    # the percentile 2/3 of 1, 2, 3, 99 is 3, so 1, 2, 3, 3 are rescaled
    "winsorize": (lambda: ref.winsorize([0, 1, 2, 3, 99], 100 * 2 / 3), [0, 0.1, 0.55, 1, 1]),
    "winsorize one": (lambda: ref.winsorize([0, 4], 50), [0, 1]),
    # importances 0.1, 1 and 0 of the normalized maps (0, 1), (1, 0) and (1, 0)
    "winsor_cam": (
        lambda: ref.winsor_cam([[-1, 2], [4, 2], [1, 0]], [[[1, 1]], [[3, 3]], [[-1, -1]]], (2,), 100),
        [1, 0.1],
    ),
    "smooth": (lambda: ref.smooth([[1, 2], [3, 6]]), [2, 4]),
    "flip_mean": (lambda: ref.flip_mean([[1, 2], [6, 3]], [None, 0]), [2, 4]),
    "refine_cam": (lambda: ref.refine_cam([A, A], [G, G], (2, 2)), ref.normalize_minmax(A[0] / 12 + 4 / 3 * A[1]) ** 2),
    "sess": (
        lambda: ref.sess([[1, 2], [4, 4]], [(0,), (1,)], [(2,)] * 2, [0.4, 0.2], (4,), "mean", None),
        [1, 2, 2, 0],
    ),
    "sess max": (
        lambda: ref.sess([[1, 3], [4, 4]], [(0,), (1,)], [(2,)] * 2, [0.4, 0.2], (4,), "max", None),
        [1, 3, 2, 0],
    ),
    # row 0 holds dimensions 0, 1 and row 1 holds 1, 0: M = ((a, b), (b, a)), variance 1, mean 2
    "dcam": (lambda: ref.dcam([[[1.0], [3.0]]], [(0, 1)]), [[2], [2]]),
    # M is the mean of ((0, 6, 3), (3, 0, 6), (6, 3, 0)) and ((0, 12, 0), (12, 0, 0), (0, 0, 12)), its mean 7/2
    "dcam two orders": (
        lambda: ref.dcam([[[0], [3], [6]], [[0], [0], [12]]], [(0, 1, 2), (0, 2, 1)]),
        3.5 * np.array([[15.5], [9.5], [3.5]]),
    ),
}


SHAPES = [(5,), (3, 4), (2, 3, 2)]
BIAS = 0.7


def exact(result, expected):
    """Equal up to the rounding of float64."""
    assert_allclose(result, expected, rtol=1e-9, atol=1e-12)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def pooled(weights):
    """Mean pooling and one linear row: the score, and its gradient for activations `(k, *s)`."""

    def score(activations):
        return float(sum(w * channel.mean() for w, channel in zip(weights, activations, strict=True))) + BIAS

    def gradient(activations):
        return np.array(
            [np.full(channel.shape, w / channel.size) for w, channel in zip(weights, activations, strict=True)]
        )

    return score, gradient
