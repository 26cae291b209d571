"""Two variants of the model parameter randomization test: Hedström et al. 2024, https://arxiv.org/abs/2401.06465.

The smooth test (sMPRT) averages maps over noise before comparing them, because noisy single maps differ in any case.
The efficient test (eMPRT) does not compare maps: it tests whether the map of the random model is less ordered than that
of the original model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradcam_kit.capture import randomizing
from gradcam_kit.draws import normal
from gradcam_kit.errors import InputError, OptionError, kind_of
from gradcam_kit.functional import at_least_float32
from gradcam_kit.metrics.checks import degenerate, usable
from gradcam_kit.metrics.draws import identities_of
from gradcam_kit.metrics.randomization import Mode, RandomizationCurve, parameter_randomization
from gradcam_kit.metrics.registry import follows_predictions
from gradcam_kit.metrics.result import MetricResult, measured
from gradcam_kit.options import positive, positive_int
from gradcam_kit.similarity import broken
from gradcam_kit.types import Images

_STREAM = 1 << 19


def smooth_parameter_randomization(
    model: nn.Module,
    explain: Callable[[Any], Float[Tensor, "n *s"]],
    images: Float[Tensor, "n c *t"],
    *,
    samples: int = 50,
    noise: float = 0.1,
    mode: Mode = "cascading",
    layers: Sequence[str] | None = None,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
) -> RandomizationCurve:
    """Compare maps as `parameter_randomization` does, but average each map over noisy copies of the image (sMPRT).

    Args:
        model: the model that `explain` explains; it is restored afterwards.
        explain: function from images to signed maps of fixed classes.
        images: the images to explain.
        samples: number of noisy copies of each image; every model gets the same copies.
        noise: standard deviation of the noise, as a share of the range of each image's values.
        mode: as in `parameter_randomization`.
        layers: as in `parameter_randomization`.
        seed: seed of the new parameters, and of the noise.
        identities: an integer per image, from which its noise is derived; None = derived from the values of the image.

    Raises:
        InputError: a bare `cam`, which would explain the predicted classes, or images that are not one tensor.
        OptionError: an invalid option.
    """
    _check_fixed(explain)
    if not isinstance(images, Tensor):
        raise InputError(f"images are {kind_of(images)}; expected one tensor, to which noise can be added")
    positive("noise", noise)
    positive_int("samples", samples)
    own, flat = identities_of(identities, images), at_least_float32(images).flatten(1)
    spans = (flat.amax(1) - flat.amin(1)).reshape(-1, *(1 for _ in images.shape[1:]))

    def smooth(rows: Any) -> Tensor:
        total: Tensor | None = None
        for draw in range(samples):
            moved = noise * spans * normal(tuple(images.shape[1:]), own, seed, _STREAM + draw)
            found = at_least_float32(explain((rows + moved).to(rows.dtype)))
            total = found if total is None else total + found
        assert total is not None
        return total / samples

    curve = parameter_randomization(model, smooth, images, mode=mode, layers=layers, seed=seed)
    return replace(curve, settings={**curve.settings, "samples": samples, "noise": f"{noise:g} of the range"})


def efficient_parameter_randomization(
    model: nn.Module,
    explain: Callable[[Any], Float[Tensor, "n *s"]],
    images: Images,
    *,
    bins: int = 100,
    seed: int = 0,
) -> MetricResult:
    r"""Return the rise of the map's entropy when all parameters are random (eMPRT): $(H(\hat L) - H(L)) / H(L)$.

    H is the entropy, in nats, of the histogram of the map's values over their own range. Higher is better: the map of a
    model that has learned nothing should be less ordered. `details` contains both entropies.

    Args:
        model: the model that `explain` explains; it is restored afterwards.
        explain: function from images to signed maps of fixed classes, e.g.
            `lambda images: cam.explain(images, classes).saliency["layer4"]`.
        images: the images to explain.
        bins: number of bins of the histogram, at least 2.
        seed: seed of the new parameters.

    Raises:
        InputError: a bare `cam`, whose classes would follow the predictions of the random model.
        OptionError: a single bin.
    """
    _check_fixed(explain)
    if positive_int("bins", bins) < 2:
        raise OptionError("bins is 1; expected at least two, as the entropy of a single bin is always 0")
    with randomizing(model, images, seed=seed) as randomizer:
        original = explain(images)
        randomizer.randomize()
        random = explain(images)
    before, after = (histogram_entropy(maps, bins) for maps in (original, random))
    flags = {flag: holds | degenerate(random)[flag] for flag, holds in degenerate(original).items()}
    settings = {"bins": bins, "seed": seed}
    return measured((after - before) / before, flags, settings, {"original": before, "random": after})


def histogram_entropy(maps: Float[Tensor, "n *s"], bins: int) -> Float[Tensor, " n"]:
    """Return the entropy in nats of the histogram of each map over its own range; NaN for maps that are not finite."""
    values = usable(maps).flatten(1).double()
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    span = high - low
    place = ((values - low) / span.where(span > 0, 1) * bins).long().clamp(max=bins - 1)
    counts = values.new_zeros(len(values), bins).scatter_add_(1, place, torch.ones_like(values))
    shares = counts / values.shape[1]
    return -torch.xlogy(shares, shares).sum(1).masked_fill(broken(maps), torch.nan)


def _check_fixed(explain: Callable[[Any], Tensor]) -> None:
    if follows_predictions(explain):
        raise InputError(
            "explain would use the class that the random model predicts; expected fixed classes and signed maps: "
            "lambda images: cam.explain(images, classes).saliency[layer]"
        )
