"""Sanity checks of maps: Adebayo et al., NeurIPS 2018, https://arxiv.org/abs/1810.03292.

They test whether maps change with random parameters, with another class, or with another method. All compare maps of
the same images; a constant map has no structure to compare, so its similarity is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradcam_kit.capture import randomizing
from gradcam_kit.errors import InputError, OptionError
from gradcam_kit.functional import move, normalize, upsample
from gradcam_kit.metrics.checks import degenerate, usable
from gradcam_kit.metrics.registry import follows_predictions
from gradcam_kit.metrics.result import MetricResult, Status, measured
from gradcam_kit.options import one_of
from gradcam_kit.similarity import check_pair, pearson, ranks, spearman, ssim
from gradcam_kit.types import Images

Mode = Literal["cascading", "independent"]
_WINDOW = 11  # side of the SSIM window in positions
_CELL = 16  # side of a HOG cell in positions, if the map has room for 3 cells


def hog_correlation(a: Float[Tensor, "n *t"], b: Float[Tensor, "n *t"]) -> Float[Tensor, " n"]:
    """Return the Pearson correlation of the histograms of oriented gradients of min-max normalized maps.

    Cells are 16 positions wide, or a third of the shorter side if that is less. The result is NaN for a constant map,
    for maps without two position axes, and for maps with a side of fewer than 6 positions.
    """
    from skimage.feature import hog

    check_pair(a, b)
    cell = min(_CELL, *(size // 3 for size in a.shape[1:]))
    if a.ndim != 3 or cell < 2:
        return a.new_full((len(a),), torch.nan, dtype=torch.float64)

    pairs = zip(*(normalize(maps.double()).cpu().numpy() for maps in (a, b)), strict=True)
    found = [[hog(picture, pixels_per_cell=(cell, cell)) for picture in pair] for pair in pairs]
    features = move(torch.from_numpy(np.array(found)), a.device).reshape(len(a), 2, -1)
    return pearson(features[:, 0], features[:, 1])


def similarities(
    a: Float[Tensor, "n *s"], b: Float[Tensor, "n *s"], size: tuple[int, ...]
) -> dict[str, Float[Tensor, " n"]]:
    """Return all similarities of signed maps by name. SSIM and HOG are computed at `size`, at which maps are viewed."""
    shown = [upsample(maps.double(), size) for maps in (a, b)]
    return {
        "spearman": spearman(a, b),
        "spearman of absolute values": spearman(a.abs(), b.abs()),
        "ssim": _ssim(*(normalize(maps) for maps in shown)),
        "pearson of hog": hog_correlation(*shown),
    }


@dataclass(frozen=True)
class RandomizationCurve:
    """Similarities of the maps to the original maps while layers become random. Lower is better.

    Attributes:
        layers: the randomized layer of each step, from output to input; the original model is not a step.
        similarity: measure -> `(layers, n)`, NaN where a map is constant.
        status: a `Status` for each similarity, DEGENERATE_MAP where a map is constant or not finite.
        without_initializer: parameters whose values were shuffled, because their module does not initialize them.
        kept: the parameters among `without_initializer` that kept their values.
        unused: layers that did not take part in the pass and therefore have no step.
        settings: everything else that changes the numbers.
    """

    layers: tuple[str, ...]
    similarity: Mapping[str, Float[Tensor, "layers n"]]
    status: Int[Tensor, "layers n"]
    without_initializer: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]
    settings: Mapping[str, Any]

    def mean(self) -> dict[str, Float[Tensor, " layers"]]:
        """Return the curve of each measure: the mean over the images where it is defined."""
        return {name: values.nanmean(1) for name, values in self.similarity.items()}


def parameter_randomization(
    model: nn.Module,
    explain: Callable[[Any], Float[Tensor, "n *s"]],
    images: Images,
    *,
    mode: Mode = "cascading",
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> RandomizationCurve:
    """Compare maps with those of the same model after its layers received random parameters.

    Args:
        model: the model that `explain` explains; it is restored afterwards.
        explain: function from images to signed maps of fixed classes, e.g.
            `lambda images: cam.explain(images, classes).saliency["layer4"]`.
        images: the images to explain.
        mode: "cascading" from output to input, or "independent", one layer at a time.
        layers: names of modules, one for each step; None = every layer with parameters.
        seed: seed of the new parameters.

    Raises:
        InputError: a bare `cam`, which would explain the classes that the random model predicts.
        OptionError: no layers, or layers that do not take part in the pass.
    """
    one_of("mode", mode, get_args(Mode))
    if follows_predictions(explain):
        raise InputError(
            "explain would use the class that the random model predicts; expected fixed classes and signed maps: "
            "lambda images: cam.explain(images, classes).saliency[layer]"
        )
    with randomizing(model, images, seed=seed) as randomizer:
        original = explain(images)
        size = _size(images, original)
        steps = randomizer.cascading(layers) if mode == "cascading" else randomizer.independent(layers)
        found, statuses = {}, []
        for name in steps:
            maps = explain(images)
            found[name] = similarities(original, maps, size)
            statuses.append(measured(maps.new_zeros(len(maps)), _flags(original, maps)).status)
    measures = next(iter(found.values()), {})
    return RandomizationCurve(
        layers=tuple(found),
        similarity={name: torch.stack([step[name] for step in found.values()]) for name in measures},
        status=torch.stack(statuses) if statuses else torch.zeros(0, len(original), dtype=torch.long),
        without_initializer=randomizer.without_initializer,
        kept=randomizer.kept,
        unused=randomizer.unused,
        settings={"mode": mode, "seed": seed, "layers": tuple(found)},
    )


def class_sensitivity(a: Float[Tensor, "n *s"], b: Float[Tensor, "n *s"]) -> MetricResult:
    """Rank-correlate the signed maps of two classes of the same images. Near 1, the maps are class-agnostic.

    The metric follows Williamson et al. 2025, arXiv 2506.07327. Images with a constant or non-finite map are flagged.
    """
    return measured(spearman(a, b), _flags(a, b), {"correlation": "of ranks, signed"})


def _flags(a: Tensor, b: Tensor) -> dict[Status, Tensor]:
    """Return for which images one of two maps is constant or not finite, as a flag by status."""
    return {flag: holds | degenerate(b)[flag] for flag, holds in degenerate(a).items()}


def method_agreement(maps: Mapping[str, Float[Tensor, "n *s"]]) -> MetricResult:
    """Rank-correlate the signed maps of all pairs of methods. An image's value is the mean over the pairs.

    Images with a constant or non-finite map are flagged. `details["pairs"]` has the correlations `(n, methods,
    methods)` in the order of the mapping, NaN for such a map.

    Raises:
        OptionError: fewer than two methods.
        ShapeError: maps of different shapes.
    """
    if len(maps) < 2:
        raise OptionError(f"methods are {', '.join(maps) or 'none'}; expected at least two to compare")
    ranked = [ranks(usable(one).flatten(1)) for one in maps.values()]
    for one in ranked:
        check_pair(ranked[0], one)
    flat = torch.stack([degenerate(one)[Status.DEGENERATE_MAP] for one in maps.values()], 1)
    pairs = torch.stack([torch.stack([pearson(a, b) for b in ranked], 1) for a in ranked], 1)
    pairs = pairs.masked_fill(flat[:, None] | flat[:, :, None], torch.nan)
    above = torch.ones(len(maps), len(maps), dtype=torch.bool, device=pairs.device).triu(1)
    values = pairs.where(above, 0).sum((1, 2)) / above.sum()
    settings = {"correlation": "of ranks, signed", "methods": tuple(maps)}
    return measured(values, {Status.DEGENERATE_MAP: flat.any(1)}, settings, {"pairs": pairs})


def _size(images: Images, maps: Tensor) -> tuple[int, ...]:
    """Return the size of the images if they are one tensor, otherwise that of the maps."""
    return tuple(images.shape[2:]) if isinstance(images, Tensor) else tuple(maps.shape[1:])


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the SSIM with the usual window, or the largest window that fits."""
    side = min(_WINDOW, *a.shape[1:])
    return ssim(a, b, window=side - (side + 1) % 2)
