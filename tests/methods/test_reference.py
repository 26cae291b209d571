"""The oracles themselves: numbers to check by hand."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from reference_numbers import BY_HAND, SHAPES, ZEROS, A, draw, exact, pooled

# The last stage


@pytest.mark.parametrize(
    ("values", "how", "expected"),
    [([3, 3], "minmax", 0), ([3, 3], "max", 1), ([0, 0], "minmax", 0), ([0, 0], "max", 0), ([-2, -1], "max", 0)],
)
def test_maps_without_contrast(values, how, expected):
    exact(ref.heatmap([values], (7,), how), np.full(7, expected))


@pytest.mark.parametrize("old", SHAPES)
@pytest.mark.parametrize("change", [lambda n: 3 * n + 1, lambda n: n, lambda n: n - 1, lambda n: 8 * n])
def test_upsample_equals_interpolate(old, change):
    values, new = draw(*old), tuple(change(n) for n in old)
    mode = ("linear", "bilinear", "trilinear")[len(old) - 1]
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], new, mode=mode, align_corners=False
    )
    exact(ref.upsample(values, new), expected[0, 0].numpy())


def test_fusion_by_hand():
    first, second = [[-1, 2], [4, 0]], [[5, 0], [5, 0]]
    exact(ref.fuse([first, second], "mean"), [[2, 1], [4.5, 0]])
    exact(ref.fuse([first, second], "max"), [[5, 2], [5, 0]])
    exact(ref.fuse([first, second], "product"), [[-5, 0], [20, 0]])
    # [[0, .5], [1, 0]] and [[1, 0], [1, 0]] after normalization
    exact(ref.heatmap([first, second], (2, 2), fusion="mean"), [[0.5, 0.25], [1, 0]])
    exact(ref.heatmap([first, second], (2, 2), fusion="product"), [[0, 0], [1, 0]])
    exact(ref.heatmap([first, ZEROS], (2, 2), fusion="product"), ZEROS)
    exact(ref.heatmap([first], (2, 2), "none"), [[0, 2], [4, 0]])


def test_layer_cam_fusion_by_hand():
    shallow, deep = [[0, 1], [2, 4]], [[10, 0], [0, 0]]
    tanh = np.tanh([0.5, 1.0, 2.0])
    expected = [[1, tanh[0]], [tanh[1], tanh[2]]]
    exact(ref.layer_cam_heatmap([shallow, deep], (2, 2), [True, False], normalization="max"), expected)
    exact(ref.layer_cam_heatmap([ZEROS, deep], (2, 2), [True, False]), ref.heatmap([deep], (2, 2)))


# Methods by hand


@pytest.mark.parametrize("name", BY_HAND)
def test_method_by_hand(name):
    compute, expected = BY_HAND[name]
    exact(compute(), expected)


def test_principal_component_of_two_points():
    # the centered kernel is c ((1, -1), (-1, 1)) with c = (k11 - 2 k12 + k22) / 4, and the component sqrt(c) (1, -1)
    exact(np.sort(ref.kpca_cam([[0, 2]], "rbf", 0.5)), np.sqrt((2 - 2 * np.exp(-2)) / 4) * np.array([-1, 1]))
    # by default gamma = 1/k; centered the points are -1 and 1: kernel values tanh 2 (equal) and tanh 0 (opposite)
    for channels in (1, 3):
        exact(np.sort(ref.kpca_cam([[0, 2]] * channels)), np.sqrt(np.tanh(2) / 2) * np.array([-1, 1]))
    # 2^3 and 0^3
    exact(np.sort(ref.kpca_cam([[0, 2]], "poly")), np.sqrt(8 / 2) * np.array([-1, 1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_kernel_is_centered_eigen_cam(shape):
    exact(ref.kpca_cam(draw(3, *shape), "linear"), ref.eigen_cam(draw(3, *shape), center=True))


def test_factorization_never_gets_worse():
    rows = ref.dff_rows([draw(4, 3, 3), draw(4, 3, 3, seed=1)])
    assert rows.shape == (18, 4)
    exact(rows.min(axis=0), np.zeros(4))
    h, w = np.abs(draw(18, 2, seed=2)), np.abs(draw(2, 4, seed=3))
    objectives = [ref.nmf_objective(rows, h, w)]
    for _ in range(30):
        h, w = ref.nmf_step(rows, h, w)
        objectives.append(ref.nmf_objective(rows, h, w))
    assert (np.diff(objectives) <= 1e-9).all()
    assert objectives[-1] < 0.5 * objectives[0]


# Scores of masked inputs and activations


def test_score_cam_by_hand():
    # masks (0, 1), (1, 0) and 0 for the dead channel; the score x0 + 2 x1 of the masked (3, 1) is 2, 3 and 0
    activations, image = [[0.0, 2.0], [4.0, 0.0], [5.0, 5.0]], [[3.0, 1.0]]

    def score(x):
        return float(x[0, 0] + 2 * x[0, 1])

    weights = np.exp([2, 3, 0]) / np.exp([2, 3, 0]).sum()
    exact(ref.score_cam(activations, image, score), weights @ activations)
    exact(ref.score_cam(activations, image, lambda x: score(x) + 9), weights @ activations)
    exact(ref.score_cam(activations, image, lambda x: score(x) + 9, "relu"), [12, 4])
    exact(ref.score_cam(activations, image, score, "relu", baseline=[[2.5, 0.0]]), [2, 0])
    exact(ref.score_cam(activations, image, lambda x: score(x) + 9, "probability"), [48, 22])
    exact(ref.score_cam(activations, image, score, channels=1), [4, 0])  # standard deviations 1, 2, 0
    exact(
        ref.score_cam(activations, image, score, channels=1, ranking="gradient", gradients=[[1, 1], [0, 1], [-5, 0]]),
        [0, 2],
    )
    exact(
        ref.score_cam(
            activations, image, score, channels=1, ranking="first-order", gradients=[[1, 1], [0, 9], [-5, 0]]
        ),
        [0, 2],  # evidence -25 and 2, of which the masks keep 2, -25 and 0
    )
    exact(ref.ss_cam(activations, image, score, np.zeros((2, 1, 2))), weights @ activations)
    exact(ref.is_cam(activations, image, score, [1, 1, 1]), weights @ activations)
    # noise (1, 0) and (0, 1) on the masks adds 3/2 and 1 to every mean score
    exact(ref.ss_cam(activations, image, score, [[[1, 0]], [[0, 1]]], "relu"), [2.5 * 5 + 5.5 * 4, 4.5 * 2 + 2.5 * 5])
    exact(ref.is_cam(activations, image, score, ref.is_cam_factors(4), "relu"), [3 * 4 * 0.625, 2 * 2 * 0.625])


def test_group_cam_by_hand():
    # weights 1, 1, -1: M = (2, 4) with mask (0, 1), and 0 with mask 0; inputs (9, 1) and (9, 9) against blur (9, 9)
    activations, gradients = [[1.0, 3.0], [1.0, 1.0], [2.0, 0.0]], [[1, 1], [1, 1], [-1, -1]]
    groups = [[0, 1], [2]]
    image, blurred = [[3.0, 1.0]], [[9.0, 9.0]]
    exact(ref.group_cam(activations, gradients, image, blurred, lambda x: float(x[0, 0] - x[0, 1]), groups), [16, 32])
    exact(ref.group_cam(activations, gradients, image, blurred, lambda x: float(x[0, 1]), groups), [0, 0])


def test_gaussian_blur_by_hand():
    edge = np.exp(-0.5) / (1 + 2 * np.exp(-0.5))
    exact(ref.gaussian_blur([[0, 0, 1, 0]], 3, 1), [[0, edge, 1 - 2 * edge, 2 * edge]])  # the border mirrors the 1
    exact(ref.sess([[0, 0, 1, 0]], [(0,)], [(4,)], [0.5], (4,), blur=(3, 1)), [0, edge, 1 - 2 * edge, 2 * edge])
    exact(ref.gaussian_blur(np.ones((2, 4, 5)), 7, 3), np.ones((2, 4, 5)))


def test_ablation_cam_by_hand():
    score, _ = pooled([2, -4])  # 5 - 2 + 0.7, without a channel -1.3 and 5.7
    exact(ref.ablation_cam_weights(A, score), np.array([5, -2]) / 3.7)
    exact(ref.ablation_cam_weights(A, lambda x: score(x) - 10), np.array([5, -2]) / 6.3)
    exact(ref.ablation_cam_weights(A, lambda x: score(x) - 3.7, [1]), [0, -2])
    exact(ref.ablation_cam(A, score), (5 * A[0] - 2 * A[1]) / 3.7)


def test_recipro_cam_by_hand():
    score, _ = pooled([3])
    exact(ref.recipro_cam([[1, 3, 2]], score), [0, 2, 1])
    exact(ref.recipro_cam([[1, 3, 2]], score, 3), [0, 1, 0.5])  # 5/4, 9/4, 7/4
    exact(ref.recipro_cam([[1, 3, 2]], score, 3, "spread"), [0, 2.25, 0.75])  # 3/4, 3, 3/2
    exact([ref.window_weight(offset, 3) for offset in [(0, 0), (0, 1), (-1, 1), (0, 2)]], [1 / 4, 1 / 8, 1 / 16, 0])


def test_vit_recipro_cam_by_hand():
    tokens = [[100.0], [1.0], [3.0], [2.0]]

    def replay(residual, normalized):
        assert residual[0, 0] == 100
        return float(residual.sum() + 2 * normalized.sum())

    exact(ref.vit_recipro_cam(tokens, np.ones((4, 1)), (3,), replay, window=1), [0, 2, 1])
    exact(ref.vit_recipro_cam(tokens, np.zeros((4, 1)), (3,), replay), [0, 1, 0.5])
    exact(ref.vit_recipro_cam(np.full((4, 1), 100.0), np.ones((4, 1)), (1, 3), replay), [[0, 12.75, 0]])


# Attention and input gradients


def test_attention_by_hand():
    first = [[[0.5, 0.5], [0, 1]], [[0.1, 0.9], [0, 1]]]
    last = [[[1, 0], [1, 0]]]
    # mean heads + I, rows normalized: ((.65, .35), (0, 1)) and ((1, 0), (.5, .5)); product ((.65, .35), (.325, .675))
    exact(ref.attention_rollout([first, last]), [0.35])
    exact(ref.attention_rollout([first, last], prefix=0, class_token=False), [0.4875, 0.5125])
    exact(ref.attention_rollout([first, last], class_token=False), [0.675])
    exact(ref.attention_rollout([first], "max"), [0.9 / 2.4])
    exact(ref.attention_rollout([first], "min"), [0.5 / 1.6])
    exact(ref.attention_rollout([first], discard=0.5, prefix=0), [1 / 1.7, 0.7 / 1.7])  # 0 and 0.3 of four go
    # head means ((.25, .45), (0, 0)) and then ((0, 0), (2, 0)): R = ((1.25, .45), (0, 1)), then row 1 gains 2 x row 0
    gradients = [[[[1, 0], [0, -1]], [[0, 1], [0, 0]]], [[[-1, 5], [2, 5]]]]
    exact(ref.generic_attention([first, last], gradients), [0.45])
    exact(ref.generic_attention([first, last], gradients, 0, class_token=False), [3.75 / 2, 2.35 / 2])
    exact(ref.legrad(gradients), [(1 / 4 + 10 / 2) / 2])
    # cosines 0, 1 and -1 become 1/2, 1 and 0
    exact(ref.grad_eclip([1, -2], [[4, 1], [1, 1], [9, 9]], [1, 0], [[0, 3], [2, 0], [-1, 0]]), [1, -1, 0])


def test_guided_backprop_by_hand():
    def linear(weight):
        layer = torch.nn.Linear(2, len(weight), bias=False)
        layer.weight = torch.nn.Parameter(torch.tensor(weight))
        return layer

    layers = [linear([[1.0, 1.0], [1.0, -1.0]]), torch.nn.ReLU(inplace=True), linear([[2.0, -5.0], [-1.0, 3.0]])]
    # both hidden units are on for (3, 1): only positive output weights come back through the ReLU
    exact(ref.guided_backprop(layers, [3, 1], 0), [2, 2])
    exact(ref.guided_backprop(layers, [3, 1], 1), [3, -3])
    exact(ref.guided_backprop(layers, [1, 3], 1), [0, 0])
