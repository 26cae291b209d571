"""Slow transcriptions of the methods that score masked inputs; `score(x)` maps one `(c, *t)` array to one float."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from reference_gradients import grad_cam_weights
from reference_last_stage import Array, float64, normalize_minmax, relu, upsample, weighted_sum

Score = Callable[[Array], float]


def score_cam_mask(channel: Any, size: Sequence[int]) -> Array:
    """Score-CAM, Wang et al., CVPRW 2020: `M_k = N(U(A_k))`, upsampled first; a constant (dead) channel gives 0."""
    channel = float64(channel)
    if channel.max() == channel.min():
        return np.zeros(tuple(size))
    return normalize_minmax(upsample(channel, size))


def softmax(values: Sequence[float]) -> list[float]:
    """`e^{v_i} / Σ_j e^{v_j}`, shifted by the maximum so that nothing overflows."""
    exponentials = [math.exp(value - max(values)) for value in values]
    return [exponential / sum(exponentials) for exponential in exponentials]


def ranked_channels(activations: Any, channels: int | None, ranking: str = "std", gradients: Any = None) -> list[int]:
    """The `channels` channels of largest spatial standard deviation, mean gradient (gScoreCAM, ACCV 2022), or
    first-order score of the layer under the channel's mask, `Σ_s M_k(s) Σ_j A_j(s) G_j(s)`.

    Ambiguous: the mean gradient is taken with its sign; ties go to the lower index.
    """
    activations = float64(activations)
    if channels is None:
        return list(range(len(activations)))
    if ranking == "std":
        keys = [float(np.std(one)) for one in activations]
    elif ranking == "gradient":
        keys = list(grad_cam_weights(gradients))
    else:
        evidence = (activations * float64(gradients)).sum(0)
        keys = [float((normalize_minmax(one) * evidence).sum()) for one in activations]
    return sorted(range(len(activations)), key=lambda k: -keys[k])[:channels]


def weigh_scores(
    chosen: dict[int, float], activations: Array, weighting: str, baseline_score: float | None = None
) -> Array:
    """`Σ_k w_k A_k` with weights from the scores of the chosen channels; a channel that was not chosen weighs 0.

    "softmax": Wang et al., CVPRW 2020, softmax over the chosen channels, dead ones included. "probability" (official
    code): the scores themselves, dead channels skipped. "relu": `ReLU(s_k − y(baseline))`.
    """
    weights = np.zeros(len(activations))
    softmaxed = dict(zip(chosen, softmax(list(chosen.values())), strict=True))
    for k, score in chosen.items():
        if weighting == "softmax":
            weights[k] = softmaxed[k]
        elif weighting == "probability":
            weights[k] = score if activations[k].max() > activations[k].min() else 0.0
        elif weighting == "relu":
            assert baseline_score is not None
            weights[k] = max(score - baseline_score, 0.0)
        else:
            raise ValueError(f"unknown weighting {weighting!r}")
    return weighted_sum(weights, activations)


def score_cam(
    activations: Any,
    image: Any,
    score: Score,
    weighting: str = "softmax",
    channels: int | None = None,
    ranking: str = "std",
    gradients: Any = None,
    baseline: Any = None,
) -> Array:
    """Score-CAM, Wang et al., CVPRW 2020, 1910.01279: `s_k = y(x ⊙ M_k)`, `w = softmax_k(s)`, `Σ_k w_k A_k`.

    For weighting "probability" `score` must return the probability of the class. The baseline is the zero input.
    """
    activations, image = float64(activations), float64(image)
    scores = {}
    for k in ranked_channels(activations, channels, ranking, gradients):
        scores[k] = score(image * score_cam_mask(activations[k], image.shape[1:]))
    baseline = np.zeros_like(image) if baseline is None else float64(baseline)
    return weigh_scores(scores, activations, weighting, score(baseline))


def ss_cam(activations: Any, image: Any, score: Score, noise: Any, weighting: str = "softmax") -> Array:
    """SS-CAM, Wang et al. 2020, 2006.14255: Score-CAM whose s_k is the mean over the masks `M_k + noise`.

    `noise` is `(samples, k or 1, *t)`. Unconfirmed: noise is added after normalization, also to a dead channel's 0.
    """
    activations, image, noise = float64(activations), float64(image), float64(noise)
    scores = {}
    for k in range(len(activations)):
        mask = score_cam_mask(activations[k], image.shape[1:])
        draws = [one[k if len(one) > 1 else 0] for one in noise]
        scores[k] = sum(score(image * (mask + draw)) for draw in draws) / len(draws)
    return weigh_scores(scores, activations, weighting, score(np.zeros_like(image)))


def is_cam_factors(samples: int, ladder: str = "linear") -> list[float]:
    """IS-CAM, Naidu et al. 2020, 2010.03023: the coefficients c_1 … c_N of the inputs.

    Unconfirmed: "linear" is `i/N`; "printed" the paper's sum `Σ_{j<i} j/N` (4.5 for N = 10); "cumulative" the sum
    `Σ_{j≤i} j/N` of torch-cam (5.5 for N = 10).
    """
    if ladder == "linear":
        return [i / samples for i in range(1, samples + 1)]
    if ladder == "printed":
        return [sum(j / samples for j in range(i)) for i in range(1, samples + 1)]
    if ladder == "cumulative":
        return [sum(j / samples for j in range(i + 1)) for i in range(1, samples + 1)]
    raise ValueError(f"unknown ladder {ladder!r}")


def is_cam(activations: Any, image: Any, score: Score, factors: Sequence[float], weighting: str = "softmax") -> Array:
    """IS-CAM, Naidu et al. 2020, 2010.03023: Score-CAM whose s_k is the mean of `y(c_i · x ⊙ M_k)`."""
    activations, image = float64(activations), float64(image)
    scores = {}
    for k in range(len(activations)):
        masked = image * score_cam_mask(activations[k], image.shape[1:])
        scores[k] = sum(score(factor * masked) for factor in factors) / len(factors)
    return weigh_scores(scores, activations, weighting, score(np.zeros_like(image)))


def group_cam(
    activations: Any,
    gradients: Any,
    image: Any,
    blurred: Any,
    probability: Score,
    groups: Sequence[Sequence[int]],
) -> Array:
    """Group-CAM, Zhang et al. 2021, 2103.13859: `Σ_g v_g M_g`, `M_g = ReLU(Σ_{k∈g} w_k A_k)`, Grad-CAM weights.

    `v_g = ReLU(p(x ⊙ m_g + blur ⊙ (1 − m_g)) − p(blur))`, `m_g = N(U(M_g))`; a constant group: mask 0. Groups and the
    blurred image are given; the paper's percentile denoising is left out, as in its code.
    """
    activations, image, blurred = float64(activations), float64(image), float64(blurred)
    weights = grad_cam_weights(gradients)
    saliency = np.zeros(activations.shape[1:])
    for group in groups:
        members = list(group)
        group_map = relu(weighted_sum(weights[members], activations[members]))
        mask = score_cam_mask(group_map, image.shape[1:])
        gain = probability(image * mask + blurred * (1 - mask)) - probability(blurred)
        saliency += max(gain, 0.0) * group_map
    return saliency


def gaussian_kernel(size: int, sigma: float) -> Array:
    """`e^{−d²/2σ²}` at the distances d from the middle of `size` cells, sum 1."""
    values = [math.exp(-((i - (size - 1) / 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return np.array(values) / sum(values)


def gaussian_blur(image: Any, size: int, sigma: float) -> Array:
    """Separable Gaussian blur of `(c, *t)` over every position axis; borders are mirrored without the edge cell."""
    blurred = float64(image)
    kernel = gaussian_kernel(size, sigma)
    for axis in range(1, blurred.ndim):
        length = blurred.shape[axis]
        padding = [(0, 0)] * blurred.ndim
        padding[axis] = (size // 2, size // 2)
        padded = np.pad(blurred, padding, mode="reflect")
        blurred = sum(kernel[i] * np.take(padded, range(i, i + length), axis=axis) for i in range(size))
    return blurred


def rise_mask(drawn: Any, size: Sequence[int], cells: int, visible: float) -> Array:
    """RISE, Petsiuk et al., BMVC 2018, Section 3.2: a grid of `cells^axes` ones and zeros, enlarged to `(cells + 1) C`
    with `C = ceil(size / cells)`, and `size` is cut out at an indent of less than C.

    `drawn`: a number in (0, 1) for each cell, then one for each axis.
    """
    drawn = float64(drawn)
    count = cells ** len(size)
    grid = np.where(drawn[:count] < visible, 1.0, 0.0).reshape((cells,) * len(size))
    steps = [math.ceil(length / cells) for length in size]
    enlarged = upsample(grid, [(cells + 1) * step for step in steps])
    indents = [int(number * step) for number, step in zip(drawn[count:], steps, strict=True)]
    return enlarged[tuple(slice(start, start + length) for start, length in zip(indents, size, strict=True))]


def rise(image: Any, score: Score, masks: Sequence[Array], visible: float) -> Array:
    """RISE, Eq. 6: `1 / (N p) sum_i y(x * M_i) M_i`."""
    image = float64(image)
    saliency = np.zeros(image.shape[1:])
    for mask in masks:
        saliency += score(image * mask[None]) * mask
    return saliency / (len(masks) * visible)


def intersection_over_union(first: Sequence[float], second: Sequence[float]) -> float:
    """Of two boxes (x0, y0, x1, y1)."""
    sides = [min(first[axis + 2], second[axis + 2]) - max(first[axis], second[axis]) for axis in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def detection_similarity(target: dict[str, Any], found: Sequence[dict[str, Any]]) -> float:
    """D-RISE, Petsiuk et al., CVPR 2021, Eq. 4 and 5: `max_j IoU(L_t, L_j) cos(P_t, P_j) O_j`; else 0."""
    best = 0.0
    for one in found:
        p, q = float64(target["probabilities"]), float64(one["probabilities"])
        cosine = float((p * q).sum() / math.sqrt(float((p * p).sum()) * float((q * q).sum())))
        best = max(best, intersection_over_union(target["box"], one["box"]) * cosine * one["objectness"])
    return best
