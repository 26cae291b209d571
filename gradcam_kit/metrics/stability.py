"""Changes of the map under noise, relative to changes of the image, the score or the activations.

Local Lipschitz estimate: Alvarez-Melis and Jaakkola 2018, https://arxiv.org/abs/1806.08049. Relative stability: Agarwal
et al. 2022, https://arxiv.org/abs/2203.06877. All metrics draw noise from the cube of side 2 `radius` around the image,
and report the worst case. The classes remain those of the unchanged images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradcam_kit.errors import ShapeError
from gradcam_kit.functional import at_least_float32
from gradcam_kit.metrics.checks import check_heatmaps, check_same_images, check_scores, degenerate, usable
from gradcam_kit.metrics.draws import identities_of, shaken
from gradcam_kit.metrics.registry import Explain, Represent, metric
from gradcam_kit.metrics.result import MetricResult, measured
from gradcam_kit.metrics.rows import sample_index, score_settings
from gradcam_kit.options import positive, positive_int
from gradcam_kit.similarity import broken
from gradcam_kit.types import Rescore

_STREAM = 1 << 18
_SMALLEST = 1e-6
_PAPER = "Relative {} stability: Agarwal et al. 2022, https://arxiv.org/abs/2203.06877."


@metric(
    "local-lipschitz",
    better="lower",
    cost="samples E",
    paper="Local Lipschitz estimate: Alvarez-Melis and Jaakkola 2018, https://arxiv.org/abs/1806.08049.",
)
def local_lipschitz(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    explain: Explain,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    rescore: Rescore | None = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
) -> MetricResult:
    r"""Return the steepest change of the map near the image: $\max_d \|L(x + d) - L(x)\|_2 / \|d\|_2$.

    Args:
        heatmaps: heatmaps of the unchanged images.
        images: the model's input.
        explain: the method, called once for each draw with the complete batch.
        seed: seed of the noise.
        identities: an integer per image, from which its noise is derived; None = derived from the values of the image.
        rescore: used only to record the origin of the classes in the settings.
        radius: largest change of a value, in the units of the images.
        samples: number of draws.
    """
    check_heatmaps(heatmaps, images)
    clean = usable(heatmaps)

    def ratio(noisy: Tensor, again: Tensor) -> Tensor:
        return _norm(at_least_float32(again) - clean) / _norm(at_least_float32(noisy) - images)

    worst, _ = _worst(heatmaps, images, explain, ratio, seed, identities, None, radius, samples)
    return measured(worst, degenerate(heatmaps), _settings(rescore, radius, samples, seed))


@metric("relative-input-stability", better="lower", cost="samples (E + F)", paper=_PAPER.format("input"))
def relative_input_stability(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    explain: Explain,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    predicts: Rescore | None = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    floor: float = 0.01,
) -> MetricResult:
    r"""Return the largest ratio of the relative changes of map and image: $\max_d \|dL / L\|_2 / \|d / x\|_2$.

    Divisions are element-wise. Maps and images contain zeros, so divisors are clamped to a magnitude of at least
    `floor`, keeping their sign; the smaller `floor` is, the more positions without relevance dominate. Draws that
    change whether the class is predicted are left out, as in the paper; `details["left_out"]` counts them. If no draw
    remains, the number is undefined.

    Args:
        heatmaps: heatmaps of the unchanged images.
        images: the model's input.
        explain: the method, called once for each draw with the complete batch.
        seed: seed of the noise.
        identities: an integer per image, from which its noise is derived; None = derived from the values of the image.
        predicts: function that returns 1 for images whose class is predicted, else 0, such as
            `rescoring(...).predicts`; None = no draw is left out.
        radius: largest change of a value, in the units of the images.
        samples: number of draws.
        floor: smallest magnitude of a divisor.
    """
    check_heatmaps(heatmaps, images)
    change = _relative_change(usable(heatmaps), floor)
    moved = _relative_change(at_least_float32(images), floor)

    def ratio(noisy: Tensor, again: Tensor) -> Tensor:
        return change(again) / moved(noisy).clamp(min=_SMALLEST)

    worst, left_out = _worst(heatmaps, images, explain, ratio, seed, identities, predicts, radius, samples)
    settings = {**_settings(predicts, radius, samples, seed), "floor": floor}
    return measured(worst, degenerate(heatmaps), settings, {"left_out": left_out})


@metric("relative-output-stability", better="lower", cost="samples (E + 2 F)", paper=_PAPER.format("output"))
def relative_output_stability(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    explain: Explain,
    rescore: Rescore,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    predicts: Rescore | None = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    floor: float = 0.01,
) -> MetricResult:
    r"""Return the map's largest relative change per change of the score: $\max_d \|dL / L\|_2 / |y(x + d) - y(x)|$.

    The paper divides by the change of all outputs; this implementation divides by the change of the explained score,
    which is clamped to a magnitude of at least 1e-6. Everything else is as in `relative_input_stability`.

    Args:
        heatmaps: heatmaps of the unchanged images.
        images: the model's input.
        explain: the method, called once for each draw with the complete batch.
        rescore: function that returns the explained score for changed images.
        seed: seed of the noise, as in `relative_input_stability`.
        identities: as in `relative_input_stability`.
        predicts: as in `relative_input_stability`.
        radius: as in `relative_input_stability`.
        samples: as in `relative_input_stability`.
        floor: smallest magnitude of the map's values as divisors.
    """
    check_heatmaps(heatmaps, images)
    check_same_images(images, rescore)
    change, index = _relative_change(usable(heatmaps), floor), sample_index(images)
    before = check_scores(rescore(images, index), len(images))

    def ratio(noisy: Tensor, again: Tensor) -> Tensor:
        moved = (check_scores(rescore(noisy, index), len(images)) - before).abs()
        return change(again) / moved.clamp(min=_SMALLEST)

    worst, left_out = _worst(heatmaps, images, explain, ratio, seed, identities, predicts, radius, samples)
    settings = {**score_settings(rescore), **_settings(rescore, radius, samples, seed), "floor": floor}
    return measured(worst, degenerate(heatmaps), settings, {"left_out": left_out})


@metric(
    "relative-representation-stability", better="lower", cost="samples (E + 2 F)", paper=_PAPER.format("representation")
)
def relative_representation_stability(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    explain: Explain,
    represent: Represent,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    predicts: Rescore | None = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    floor: float = 0.01,
) -> MetricResult:
    r"""Return the largest ratio of the relative changes of map and activations: $\max_d \|dL / L\|_2 / \|dA / A\|_2$.

    Everything else is as in `relative_input_stability`.

    Args:
        heatmaps: heatmaps of the unchanged images.
        images: the model's input.
        explain: the method, called once for each draw with the complete batch.
        represent: function from images to the activations of a layer `(n, ...)`.
        seed: seed of the noise, as in `relative_input_stability`.
        identities: as in `relative_input_stability`.
        predicts: as in `relative_input_stability`.
        radius: as in `relative_input_stability`.
        samples: as in `relative_input_stability`.
        floor: smallest magnitude of the values of the map and of the activations as divisors.

    Raises:
        ShapeError: activations that are not `(n, ...)` with two or more axes.
    """
    check_heatmaps(heatmaps, images)
    change = _relative_change(usable(heatmaps), floor)
    moved = _relative_change(at_least_float32(_one_each(represent(images), len(images))), floor)

    def ratio(noisy: Tensor, again: Tensor) -> Tensor:
        return change(again) / moved(_one_each(represent(noisy), len(images))).clamp(min=_SMALLEST)

    worst, left_out = _worst(heatmaps, images, explain, ratio, seed, identities, predicts, radius, samples)
    settings = {**_settings(predicts, radius, samples, seed), "floor": floor}
    return measured(worst, degenerate(heatmaps), settings, {"left_out": left_out})


def _worst(
    heatmaps: Tensor,
    images: Tensor,
    explain: Explain,
    ratio: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    identities: Tensor | None,
    predicts: Rescore | None,
    radius: float,
    samples: int,
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Return the largest ratio over the draws that keep the prediction, and the number of draws that change it.

    The ratio is NaN if all draws change the prediction.
    """
    positive("radius", radius)
    own = identities_of(identities, images)
    check_same_images(images, predicts, "predicts")
    index = sample_index(images)
    before = None if predicts is None else check_scores(predicts(images, index), len(images))
    worst = torch.full((len(images),), -torch.inf, device=images.device)
    left_out = torch.zeros(len(images), dtype=torch.long, device=images.device)
    for draw in range(positive_int("samples", samples)):
        noisy = shaken(images, own, radius, seed, _STREAM + draw)
        again = explain(noisy)
        check_heatmaps(again, images, within=False)
        found, kept = ratio(noisy, again).float(), _all(worst)
        if predicts is not None and before is not None:
            kept = check_scores(predicts(noisy, index), len(images)) == before
        worst = torch.where(kept, torch.maximum(worst, found), worst)  # propagates NaN
        left_out = left_out + ~kept
    return worst.masked_fill(broken(heatmaps) | (left_out == samples), torch.nan), left_out


def _all(like: Tensor) -> Bool[Tensor, " n"]:
    return torch.ones_like(like, dtype=torch.bool)


def _relative_change(values: Float[Tensor, "n *any"], floor: float) -> Callable[[Tensor], Float[Tensor, " n"]]:
    """Return a function from other values to the norm of their element-wise change relative to `values`."""
    least = torch.full_like(values, positive("floor", floor)).copysign(values)
    divisor = torch.where(values.abs() < floor, least, values)
    return lambda others: _norm((at_least_float32(others) - values) / divisor)


def _norm(values: Float[Tensor, "n *any"]) -> Float[Tensor, " n"]:
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norms


def _one_each(activations: Tensor, n: int) -> Tensor:
    if activations.ndim < 2 or len(activations) != n:
        raise ShapeError(f"represent returned activations of shape {tuple(activations.shape)}; expected ({n}, ...)")
    return activations


def _settings(rescore: Rescore | None, radius: float, samples: int, seed: int) -> dict[str, Any]:
    classes = score_settings(rescore)["classes"]
    return {"classes": classes, "radius": radius, "samples": samples, "noise": "uniform", "seed": seed}
