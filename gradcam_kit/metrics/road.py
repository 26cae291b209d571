"""ROAD, remove and debias: Rong et al., ICML 2022, https://arxiv.org/abs/2202.00449."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.draws import normal
from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.functional import at_least_float32, move
from gradcam_kit.metrics.checks import check_heatmaps, check_rows, degenerate, improbable, usable
from gradcam_kit.metrics.draws import identities_of
from gradcam_kit.metrics.faithfulness import adcc_complexity, coherency, harmonic_mean
from gradcam_kit.metrics.imputation import TOLERANCE, Workspace, imputed
from gradcam_kit.metrics.ordering import Order, unordered
from gradcam_kit.metrics.registry import Explain, metric
from gradcam_kit.metrics.result import MetricResult, measured
from gradcam_kit.metrics.rows import score_grid, score_settings
from gradcam_kit.options import finite_number, non_negative, positive
from gradcam_kit.types import Rescore

PERCENTAGES = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0)
NOISE = 0.01
_PAPER = "ROAD: Rong et al., ICML 2022, https://arxiv.org/abs/2202.00449."
_STREAM = 2


@metric("road-morf", better="lower", cost="9 F", paper=_PAPER)
def road_morf(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    predicts: Rescore,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    percentages: Sequence[float] = PERCENTAGES,
    noise: float = NOISE,
    tolerance: float = TOLERANCE,
    batch_size: int = 64,
) -> MetricResult:
    """Return how often the class is still predicted after imputing the most relevant positions.

    The value is the mean over the percentages.

    Args:
        heatmaps: maps in [0, 1]; only the order of their values matters.
        images: the model's input, with two position axes.
        predicts: function that returns 1 for images whose class is predicted, else 0, such as
            `rescoring(...).predicts`.
        seed: seed of the noise on imputed positions.
        identities: an integer per image, from which its noise is derived; None = derived from the values of the image.
        percentages: percentages of the positions to remove; this and the other options are as in `road_curve`.
    """
    options = _options(percentages, noise, tolerance, batch_size)
    return _of_curve("most relevant first", heatmaps, images, predicts, seed, identities, options)


@metric("road-lerf", better="higher", cost="9 F", paper=_PAPER)
def road_lerf(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    predicts: Rescore,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    percentages: Sequence[float] = PERCENTAGES,
    noise: float = NOISE,
    tolerance: float = TOLERANCE,
    batch_size: int = 64,
) -> MetricResult:
    """Return how often the class is still predicted after imputing the least relevant positions.

    See `road_morf` for the arguments. The value is the mean over the percentages.
    """
    options = _options(percentages, noise, tolerance, batch_size)
    return _of_curve("least relevant first", heatmaps, images, predicts, seed, identities, options)


@metric(
    "road-combined",
    better="higher",
    cost="18 F",
    paper="ROAD on the score, LeRF and MoRF combined, as in pytorch-grad-cam.",
)
def road_combined(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    percentages: Sequence[float] = PERCENTAGES,
    noise: float = NOISE,
    tolerance: float = TOLERANCE,
    batch_size: int = 64,
) -> MetricResult:
    """Return (LeRF - MoRF) / 2, averaged over the percentages, with scores instead of predictions; in [-0.5, 0.5].

    This variant is not from the paper; it follows pytorch-grad-cam.

    Args:
        heatmaps: maps in [0, 1]; only the order of their values matters.
        images: the model's input, with two position axes.
        rescore: function that returns the probability of the explained class for changed images.
        seed: seed of the noise on imputed positions.
        identities: an integer per image, from which its noise is derived; None = derived from the values of the image.
        percentages: percentages of the positions to remove; this and the other options are as in `road_curve`.
    """
    options = _options(percentages, noise, tolerance, batch_size)
    found = _curves(heatmaps, images, rescore, seed, identities, (True, False), **options)
    (morf, lerf), ties = found.scores.unbind(1), found.ties.sum(1)
    values = ((lerf - morf).mean(1) / 2).masked_fill(unordered(heatmaps), torch.nan)
    settings = {**found.settings, "order": "least relevant first - most relevant first"}
    return measured(values, degenerate(heatmaps), settings, {"morf": morf, "lerf": lerf, "ties": ties})


@metric(
    "arcc",
    better="higher",
    cost="8 F + E",
    paper="ARCC: Domeniconi et al. 2026, https://arxiv.org/abs/2605.14641.",
)
def arcc(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    explain: Explain,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    masked_heatmaps: Float[Tensor, "n *t"] | None = None,
    percentages: Sequence[float] = (20.0, 40.0, 60.0, 80.0),
    noise: float = NOISE,
    tolerance: float = TOLERANCE,
    batch_size: int = 64,
) -> MetricResult:
    """Return the harmonic mean of coherency, 1 - complexity and clip(2 ROAD combined, 0, 1); see `road_combined`."""
    options = _options(percentages, noise, tolerance, batch_size)
    road = road_combined(heatmaps, images, rescore, seed, identities, **options)
    coherent = coherency(heatmaps, images, explain, masked_heatmaps=masked_heatmaps)
    simple = adcc_complexity(heatmaps)
    parts = {"coherency": coherent.values, "complexity": simple.values, "road_combined": road.values}
    values = harmonic_mean(coherent.values, 1 - simple.values, (2 * road.values).clamp(0, 1))
    values = values.masked_fill(improbable(torch.cat([road.details["morf"], road.details["lerf"]], 1)), torch.nan)
    flags = {flag: coherent.status == int(flag) for flag in degenerate(heatmaps)}
    return measured(values, flags, {**coherent.settings, **road.settings}, parts)


def road_curve(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    most_relevant_first: bool = True,
    percentages: Sequence[float] = PERCENTAGES,
    noise: float = NOISE,
    tolerance: float = TOLERANCE,
    batch_size: int = 64,
) -> Float[Tensor, "n percentages"]:
    """Return the scores after imputing each percentage of the positions, rounded up to a whole number, from the rest.

    Args:
        heatmaps: maps in [0, 1]; only the order of their values matters, and constant maps are ordered row by row.
        images: the model's input, with two position axes.
        rescore: function that scores changed images.
        seed: seed of the noise.
        identities: an integer per image, from which its noise is derived; None = derived from the values of the image.
        most_relevant_first: False removes the least relevant positions.
        percentages: percentages of the positions to remove, each above 0 and small enough that positions remain.
        noise: standard deviation of the noise added to imputed positions, in the units of the images; an image gets the
            same draw at every percentage.
        tolerance: tolerance of the imputation, see `impute`.
        batch_size: maximum number of changed images in memory at once.

    Raises:
        OptionError: there are no percentages, or one removes no position or all positions; or another option is out of
            range.
        ShapeError: images without two position axes.
    """
    options = _options(percentages, noise, tolerance, batch_size)
    return _curves(heatmaps, images, rescore, seed, identities, (most_relevant_first,), **options).scores[:, 0]


def _options(percentages: Sequence[float], noise: float, tolerance: float, batch_size: int) -> dict[str, Any]:
    """Return the options that all ROAD metrics share, by name."""
    return {"percentages": percentages, "noise": noise, "tolerance": tolerance, "batch_size": batch_size}


@dataclass(frozen=True)
class _Curves:
    """The scores in several orders, the number of cuts between equal values, and the settings."""

    scores: Float[Tensor, "n orders percentages"]
    ties: Int[Tensor, "n orders"]
    settings: dict[str, Any]


def _curves(
    heatmaps: Tensor,
    images: Tensor,
    rescore: Rescore,
    seed: int,
    identities: Tensor | None,
    orders: Sequence[bool],
    *,
    percentages: Sequence[float],
    noise: float,
    tolerance: float,
    batch_size: int,
) -> _Curves:
    """Impute and score all orders (True = most relevant first) together, from one sort and one draw of the noise."""
    check_heatmaps(heatmaps, images)
    if images.ndim != 4:
        raise ShapeError(f"ROAD needs images (n, c, h, w); got {tuple(images.shape)}")
    non_negative("noise", noise)
    positive("tolerance", tolerance)
    total = math.prod(heatmaps.shape[1:])
    counts = _counts(percentages, total)
    order = Order.of(usable(heatmaps))
    drawn = noise * normal(tuple(images.shape[1:]), identities_of(identities, images), seed, _STREAM)
    # Positions from `first` up to, but not including, `last` in the order are removed.
    spans = [(0, count) if most else (total - count, total) for most in orders for count in counts]
    first, last = move(torch.tensor(spans), heatmaps.device).unbind(1)
    room = Workspace()

    def build(index: Tensor, step: Tensor) -> Tensor:
        place = order.place[index]
        removed = (place >= first[step][:, None, None]) & (place < last[step][:, None, None])
        filled = imputed(images[index], removed, tolerance, room)
        return torch.addcmul(filled, drawn[index], removed[:, None].to(filled.dtype)).to(images.dtype)

    scores = score_grid(rescore, images, len(spans), build, batch_size)
    cuts = [[count if most else total - count for count in counts] for most in orders]
    settings = {
        **score_settings(rescore),
        "percentages": tuple(percentages),
        "noise": noise,
        "noise_units": "units of the model's input",
        "tolerance": tolerance,
        "seed": seed,
    }
    ties = torch.stack([order.split_ties(own) for own in cuts], 1)
    return _Curves(at_least_float32(scores).unflatten(1, (len(orders), len(counts))), ties, settings)


def _counts(percentages: Sequence[float], total: int) -> list[int]:
    # Round first, because 0.07 * 100 is a little above 7 in floating point.
    counts = [math.ceil(round(finite_number("a percentage", percent) * total / 100, 6)) for percent in percentages]
    if not counts or min(counts) < 1 or max(counts) >= total:
        raise OptionError(
            f"percentages are {tuple(percentages)} of {total} positions; expected at least one, each above "
            "0 and small enough that positions remain to impute from"
        )
    return counts


def _of_curve(
    which: str,
    heatmaps: Tensor,
    images: Tensor,
    rescore: Rescore,
    seed: int,
    identities: Tensor | None,
    options: Mapping[str, Any],
) -> MetricResult:
    """Return the result of a metric that is the mean of one curve."""
    check_rows("predicts", rescore)
    found = _curves(heatmaps, images, rescore, seed, identities, (which == "most relevant first",), **options)
    curve = found.scores[:, 0]
    values = curve.mean(1).masked_fill(unordered(heatmaps), torch.nan)
    settings = {**found.settings, "order": which}
    return measured(values, degenerate(heatmaps), settings, {"curve": curve, "ties": found.ties[:, 0]})
