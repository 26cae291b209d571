"""Robustness of the map, and fidelity to changes of the score: Yeh et al., NeurIPS 2019, arXiv 1901.09392."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.draws import normal, uniform
from gradcam_kit.errors import OptionError
from gradcam_kit.functional import at_least_float32
from gradcam_kit.metrics.checks import (
    check_heatmaps,
    check_same_images,
    check_scores,
    degenerate,
    usable,
)
from gradcam_kit.metrics.draws import identities_of, shaken
from gradcam_kit.metrics.registry import Explain, metric
from gradcam_kit.metrics.result import MetricResult, Status, measured
from gradcam_kit.metrics.rows import sample_index, score_grid, score_settings, spread
from gradcam_kit.options import non_negative, one_of, positive_int
from gradcam_kit.similarity import broken
from gradcam_kit.types import Rescore

Perturbation = Literal["noise", "patches"]

_PATCHES = "16, or a quarter of the longer side for images below 64"
_PAPER = "{}: Yeh et al., NeurIPS 2019, https://arxiv.org/abs/1901.09392."
_STREAM = 1 << 16
"""Draw i of an image uses stream _STREAM + i, so that more draws do not change the earlier ones."""


@metric("sensitivity-max", better="lower", cost="samples (E + F)", paper=_PAPER.format("Sensitivity-max"))
def sensitivity_max(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    explain: Explain,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    predicts: Rescore | None = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
) -> MetricResult:
    """Return the largest relative change of the map under noise: max ||L(x + d) - L(x)|| / ||L(x)||, d uniform.

    The classes remain those of the unchanged images. A map of zeros has no relative change and is flagged. Where the
    noise changes the prediction, the map may rightly change: `details["predictions_changed"]` counts the draws that
    change whether the class is predicted.

    Args:
        heatmaps: heatmaps of the unchanged images.
        images: the model's input.
        explain: the method, called once for each draw with the complete batch.
        seed: seed of the noise.
        identities: an integer per image, from which its noise is derived; None = derived from the values of the image.
        predicts: function that returns 1 for images whose class is predicted, else 0, such as
            `rescoring(...).predicts`; None = changed predictions are not counted.
        radius: largest change of a value, in the units of the images.
        samples: number of draws.
    """
    check_heatmaps(heatmaps, images)
    non_negative("radius", radius)
    own = identities_of(identities, images)
    clean = usable(heatmaps).flatten(1)
    largest = clean.new_zeros(len(clean))
    index, flipped = sample_index(images), torch.zeros(len(clean), dtype=torch.long, device=images.device)
    check_same_images(images, predicts, "predicts")
    before = None if predicts is None else check_scores(predicts(images, index), len(images))
    for draw in range(positive_int("samples", samples)):
        noisy = shaken(images, own, radius, seed, _STREAM + draw)
        again = explain(noisy)
        check_heatmaps(again, images, within=False)
        distance = torch.linalg.vector_norm(at_least_float32(again).flatten(1) - clean, dim=1)
        largest = torch.maximum(largest, distance)  # propagates NaN
        if predicts is not None and before is not None:
            after = check_scores(predicts(noisy, index), len(images))
            flipped = flipped + ((after != before) & after.isfinite() & before.isfinite())
    norm = torch.linalg.vector_norm(clean, dim=1)
    flags = {Status.DEGENERATE_MAP: degenerate(heatmaps)[Status.DEGENERATE_MAP] | (norm == 0)}
    settings = {
        "classes": score_settings(predicts)["classes"],
        "radius": radius,
        "samples": samples,
        "noise": "uniform",
        "seed": seed,
    }
    details = {} if predicts is None else {"predictions_changed": flipped}
    return measured((largest / norm).masked_fill(broken(heatmaps) | (norm == 0), torch.nan), flags, settings, details)


@metric("infidelity", better="lower", cost="(samples + 1) F", paper=_PAPER.format("Infidelity"))
def infidelity(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    perturbation: Perturbation = "patches",
    samples: int = 64,
    std: float = 0.2,
    patch: int | None = None,
    scaled: bool = True,
    batch_size: int = 64,
) -> MetricResult:
    r"""Return the mean squared error of the score changes that the map predicts for perturbations of the image.

    It is $E_I[(\beta\, I \cdot \Phi - \Delta y)^2]$ with the change of the score $\Delta y = y(x) - y(x - I)$ and the
    map $\Phi$, repeated in every channel. The scale of a class activation map is arbitrary, so by default the best
    scale is used, $\beta = E[(I \cdot \Phi)\, \Delta y] / E[(I \cdot \Phi)^2]$, or 0 if $I \cdot \Phi$ is 0 for all
    perturbations.

    Args:
        heatmaps: heatmaps of the images.
        images: the model's input.
        rescore: function that returns the probability of the explained class for changed images.
        seed: seed of the perturbations.
        identities: an integer per image, from which its perturbations are derived; None = derived from the values of
            the image.
        perturbation: "patches" or "noise". With "patches", I is the image itself in each cell of a grid with
            probability 1/2, so that x - I is 0 there, and 0 in the other cells. With "noise", I is Gaussian.
        samples: number of perturbations of each image.
        std: standard deviation of the noise, in the units of the images.
        patch: side of a cell, in positions; None = 16, or a quarter of the longer side if this side is below 64.
        scaled: whether to use the best scale; False = beta is 1.
        batch_size: maximum number of changed images in memory at once.

    Raises:
        OptionError: a patch that covers the entire image, for which every map has the best value.
    """
    check_heatmaps(heatmaps, images)
    one_of("perturbation", perturbation, get_args(Perturbation))
    positive_int("samples", samples)
    chosen: dict[str, Any] = {"std": std} if perturbation == "noise" else {"patch": patch or _PATCHES}
    patch = positive_int("patch", min(16, max(1, max(images.shape[2:]) // 4)) if patch is None else patch)
    non_negative("std", std)
    own, maps = identities_of(identities, images), spread(usable(heatmaps))
    cells = tuple(math.ceil(length / patch) for length in images.shape[2:])
    if perturbation == "patches" and math.prod(cells) < 2:
        raise OptionError(
            f"patch is {patch}, which covers images of {' x '.join(map(str, images.shape[2:]))} positions, so every "
            "map has the best value; expected a smaller patch, such as a quarter of a side"
        )
    products = images.new_zeros(len(images), samples, dtype=torch.double)

    def change(index: Tensor, step: Tensor) -> Tensor:
        if perturbation == "noise":
            return std * normal(tuple(images.shape[1:]), own[index], seed, _STREAM + step)
        kept = uniform(cells, own[index], seed, _STREAM + step) < 0.5
        for axis, length in enumerate(images.shape[2:], 1):
            kept = kept.repeat_interleave(patch, dim=axis).narrow(axis, 0, length)
        return images[index] * spread(kept.to(images.dtype))

    def build(index: Tensor, step: Tensor) -> Tensor:
        moved = change(index, step)
        products[index, step] = (moved * maps[index]).flatten(1).sum(1).double()
        return (images[index] - moved).to(images.dtype)

    after = score_grid(rescore, images, samples, build, batch_size)
    before = check_scores(rescore(images, sample_index(images)), len(images))
    fall = (before[:, None] - after).double()
    scale = torch.ones_like(fall[:, :1])
    if scaled:
        power = products.square().mean(1, keepdim=True)
        scale = ((products * fall).mean(1, keepdim=True) / power).where(power != 0, 0)
    values = (scale * products - fall).square().mean(1).masked_fill(broken(heatmaps), torch.nan)
    settings = {"perturbation": perturbation, **chosen, "samples": samples, "scaled": scaled, "seed": seed}
    return measured(values, degenerate(heatmaps), {**score_settings(rescore), **settings}, {"scale": scale[:, 0]})
