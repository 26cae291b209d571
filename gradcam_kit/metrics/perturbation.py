"""Scores while regions of an image are removed, the most relevant first: region perturbation and IROF."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.metrics.checks import check_heatmaps, degenerate, improbable, usable
from gradcam_kit.metrics.ordering import unordered
from gradcam_kit.metrics.regions import Regions, grid_regions, superpixels
from gradcam_kit.metrics.registry import metric
from gradcam_kit.metrics.replacement import Fill, Replacement, replacement
from gradcam_kit.metrics.result import MetricResult, measured
from gradcam_kit.metrics.rows import score_grid, score_settings
from gradcam_kit.options import positive_int
from gradcam_kit.types import Rescore

_CLAMP = 1e-7


@metric(
    "region-perturbation",
    better="higher",
    cost="(steps + 1) F",
    paper="Region perturbation (AOPC): Samek et al., TNNLS 2017, https://arxiv.org/abs/1509.06321.",
)
def region_perturbation(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    patch: int = 9,
    steps: int = 100,
    baseline: float | Fill = "noise",
    batch_size: int = 64,
) -> MetricResult:
    r"""Return the mean fall of the score while grid cells are removed: $\frac{1}{L + 1}\sum_{k=0}^{L} (y(x) - y(x_k))$.

    $x_k$ is the image without its k most relevant cells, those with the largest mean of the map.

    Args:
        heatmaps: maps in [0, 1]; only the order of the cells matters.
        images: the model's input.
        rescore: function that returns the probability of the explained class for changed images.
        seed: seed of the baseline "noise".
        identities: an integer per image, from which its noise is derived; None = derived from the values of the image.
        patch: side of a cell, in positions.
        steps: number of cells to remove; if there are fewer cells, all are removed.
        baseline: the replacement of removed positions, as in `deletion`; the paper uses noise.
        batch_size: maximum number of changed images in memory at once.
    """
    check_heatmaps(heatmaps, images)
    regions = grid_regions(images, patch)
    steps = min(positive_int("steps", steps), regions.most)
    found = replacement(images, baseline, seed, identities)
    curve, ties = _removal(heatmaps, images, rescore, regions, found, steps, batch_size)
    values = (curve[:, :1] - curve).mean(1).masked_fill(unordered(heatmaps), torch.nan)
    settings = {**score_settings(rescore), **found.settings, "patch": patch, "steps": steps}
    return measured(values, degenerate(heatmaps), settings, {"curve": curve, "ties": ties})


@metric(
    "irof",
    better="higher",
    cost="(segments + 1) F",
    paper="IROF: Rieger and Hansen, ICLR workshop 2020, https://arxiv.org/abs/2003.08747.",
)
def irof(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    segments: int = 64,
    compactness: float | None = None,
    baseline: float | Fill = "mean",
    batch_size: int = 64,
) -> MetricResult:
    r"""Return the area over the relative score while superpixels are removed: 1 minus the area under $y(x_k) / y(x)$.

    $x_k$ is the image without its k superpixels with the largest mean of the map; the area is taken over the removed
    share of superpixels, from none to all, by the trapezoid rule. Superpixels come from SLIC, which runs on the host,
    once for each image. The denominator y(x) is at least 1e-7.

    Args:
        heatmaps: maps in [0, 1]; only the order of the superpixels matters.
        images: the model's input, with two or three position axes.
        rescore: function that returns the probability of the explained class for changed images.
        seed: seed of the baseline "noise".
        identities: an integer per image, from which its noise is derived; None = derived from the values of the image.
        segments: the number of superpixels that SLIC aims at.
        compactness: weight of positions against colors in SLIC; None = 10 for two-dimensional images with three
            channels, else 0.1.
        baseline: the replacement of removed positions, as in `deletion`; the paper uses the mean.
        batch_size: maximum number of changed images in memory at once.
    """
    check_heatmaps(heatmaps, images)
    regions = superpixels(images, segments, compactness)
    found = replacement(images, baseline, seed, identities)
    curve, ties = _removal(heatmaps, images, rescore, regions, found, regions.most, batch_size)
    steps = torch.arange(regions.most + 1, device=curve.device)
    shares = torch.minimum(steps, regions.counts[:, None]) / regions.counts[:, None]
    relative = curve / curve[:, :1].clamp(min=_CLAMP)
    values = 1 - torch.trapezoid(relative, shares.to(curve.dtype), dim=1)
    values = values.masked_fill(unordered(heatmaps) | improbable(curve), torch.nan)
    settings = {
        **score_settings(rescore),
        **found.settings,
        "segments": segments,
        "superpixels": _superpixels(compactness),
        "clamp": _CLAMP,
    }
    details = {"curve": curve, "superpixels": regions.counts, "ties": ties}
    return measured(values, degenerate(heatmaps), settings, details)


def _superpixels(compactness: float | None) -> str:
    """Return a description of SLIC that is the same for all images of a data set."""
    return f"SLIC, compactness {'by the number of channels' if compactness is None else format(compactness, 'g')}"


def _removal(
    heatmaps: Tensor,
    images: Tensor,
    rescore: Rescore,
    regions: Regions,
    found: Replacement,
    steps: int,
    batch_size: int,
) -> tuple[Float[Tensor, "n cuts"], Int[Tensor, " n"]]:
    """Score the images without their first 0, 1, ... `steps` regions, and count the cuts between equal regions."""
    values = regions.means(usable(heatmaps))
    places = regions.places(values)

    def build(index: Tensor, step: Tensor) -> Tensor:
        return found.fill(index, places[index] < step.reshape(-1, *(1 for _ in heatmaps.shape[1:])))

    return score_grid(rescore, images, steps + 1, build, batch_size), regions.ties(values, steps)
