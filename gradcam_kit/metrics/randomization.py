"""Sanity checks of maps: Adebayo et al., NeurIPS 2018, https://arxiv.org/abs/1810.03292.

Do maps change when the model's parameters become random, when another class is explained, with another method? All
compare maps of the same images; a constant map has no structure to compare, so its similarity is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.capture.randomization import randomizing
from gradcam_kit.errors import ShapeError
from gradcam_kit.functional import normalize, upsample
from gradcam_kit.options import one_of
from gradcam_kit.types import Images

Mode = Literal["cascading", "independent"]
_WINDOW = 7  # of SSIM, in positions
_CELL = 16  # of HOG, in positions, where the map has 3 of them


def ranks(maps: Float[Tensor, "n *s"]) -> Float[Tensor, "n p"]:
    """The rank of each position in its map, from 1; tied positions share the mean of their ranks."""
    flat = maps.flatten(1).contiguous()
    ordered = flat.sort(1).values
    below = torch.searchsorted(ordered, flat, right=False)
    return (below + torch.searchsorted(ordered, flat, right=True) + 1).double() / 2


def pearson(a: Float[Tensor, "n *s"], b: Float[Tensor, "n *s"]) -> Float[Tensor, " n"]:
    """Correlation over the positions, in float64; NaN where a map is constant."""
    _same_shape(a, b)
    a, b = a.flatten(1).double(), b.flatten(1).double()
    constant = (a.amax(1) == a.amin(1)) | (b.amax(1) == b.amin(1))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    correlation = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    return correlation.where(~constant, torch.nan).clamp(-1, 1)


def spearman(a: Float[Tensor, "n *s"], b: Float[Tensor, "n *s"], *, absolute: bool = False) -> Float[Tensor, " n"]:
    """Rank correlation over the positions, of signed maps or of their absolute values; NaN where a map is constant."""
    _same_shape(a, b)
    return pearson(ranks(a.abs() if absolute else a), ranks(b.abs() if absolute else b))


def ssim(a: Float[Tensor, "n *t"], b: Float[Tensor, "n *t"]) -> Float[Tensor, " n"]:
    """Structural similarity (Wang et al. 2004) in all position axes, of maps that are min-max normalized here.

    The window has 7 positions a side, or as many as fit; NaN where a map is constant.
    """
    from skimage.metrics import structural_similarity

    _same_shape(a, b)
    side = min(_WINDOW, *a.shape[1:])
    window = side - (side + 1) % 2
    if window < 3:
        return a.new_full((len(a),), torch.nan, dtype=torch.float64)
    return _on_host(a, b, lambda one, other: structural_similarity(one, other, win_size=window, data_range=1.0))


def hog_correlation(a: Float[Tensor, "n *t"], b: Float[Tensor, "n *t"]) -> Float[Tensor, " n"]:
    """Pearson correlation of histograms of oriented gradients, of min-max normalized pictures.

    Cells of 16 positions, or a third of the map; NaN where a map is constant, and for maps that are no pictures.
    """
    from skimage.feature import hog

    _same_shape(a, b)
    cell = min(_CELL, *(size // 3 for size in a.shape[1:]))
    if a.ndim != 3 or cell < 2:
        return a.new_full((len(a),), torch.nan, dtype=torch.float64)

    def similarity(one: Any, other: Any) -> float:
        found = [torch.from_numpy(hog(picture, pixels_per_cell=(cell, cell))) for picture in (one, other)]
        return float(pearson(found[0][None], found[1][None]))

    return _on_host(a, b, similarity)


def _on_host(a: Tensor, b: Tensor, similarity: Callable[[Any, Any], float]) -> Float[Tensor, " n"]:
    """Compare pair by pair with a function of NumPy arrays in [0, 1]."""
    pairs = zip(*(normalize(maps.double()).cpu().numpy() for maps in (a, b)), strict=True)
    found = [similarity(one, other) if np.ptp(one) and np.ptp(other) else np.nan for one, other in pairs]
    return torch.tensor(found, dtype=torch.float64, device=a.device)


def similarities(
    a: Float[Tensor, "n *s"], b: Float[Tensor, "n *s"], size: tuple[int, ...]
) -> dict[str, Float[Tensor, " n"]]:
    """All similarities of signed maps by name; those of pictures at this size, as the maps are looked at."""
    shown = [upsample(maps.double(), size) for maps in (a, b)]
    return {
        "spearman": spearman(a, b),
        "spearman of absolute values": spearman(a, b, absolute=True),
        "ssim": ssim(*shown),
        "pearson of hog": hog_correlation(*shown),
    }


@dataclass(frozen=True)
class RandomizationCurve:
    """How similar the maps stay while layers become random; low is good.

    Attributes:
        layers: what was randomized at each step, from output to input; the untouched model is no step.
        similarity: measure -> `(layers, n)`, NaN where a map is constant.
        without_initializer: parameters that got their own values in another order, because their module has no
            initialization.
        kept: those of them that stayed as they were.
        unused: layers that did not take part in the pass, and are no step.
        settings: all that changes the numbers.
    """

    layers: tuple[str, ...]
    similarity: Mapping[str, Float[Tensor, "layers n"]]
    without_initializer: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]
    settings: Mapping[str, Any]

    def mean(self) -> dict[str, Float[Tensor, " layers"]]:
        """The curve of each measure: the mean over the images where it is defined."""
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
    """Compare maps with those of the same model after its layers got random parameters.

    Args:
        model: the model that `explain` explains; it is as before afterwards.
        explain: from the images to signed maps of fixed classes, e.g.
            `lambda images: cam.explain(images, classes).saliency["layer4"]`. Classes that are not fixed would follow
            the prediction of the random model.
        images: what is explained.
        mode: "cascading" from output to input, or "independent", one layer at a time.
        layers: names of modules, each of them one step; None = every layer that has parameters.
        seed: of the new parameters.
    """
    one_of("mode", mode, get_args(Mode))
    with randomizing(model, images, seed=seed) as randomizer:
        original = explain(images)
        size = _size(images, original)
        steps = randomizer.cascading(layers) if mode == "cascading" else randomizer.independent(layers)
        found = {name: similarities(original, explain(images), size) for name in steps}
    measures = next(iter(found.values()), {})
    return RandomizationCurve(
        layers=tuple(found),
        similarity={name: torch.stack([step[name] for step in found.values()]) for name in measures},
        without_initializer=randomizer.without_initializer,
        kept=randomizer.kept,
        unused=randomizer.unused,
        settings={"mode": mode, "seed": seed, "layers": tuple(found)},
    )


def class_sensitivity(a: Float[Tensor, "n *s"], b: Float[Tensor, "n *s"]) -> Float[Tensor, " n"]:
    """Rank correlation of the signed maps of two classes of the same images; near 1 means class-agnostic.

    After Williamson et al. 2025, arXiv 2506.07327. NaN where a map is constant.
    """
    return spearman(a, b)


def agreement(maps: Mapping[str, Float[Tensor, "n *s"]]) -> Float[Tensor, "methods methods n"]:
    """Rank correlation of the maps of every two methods, in the order of the mapping; NaN where a map is constant."""
    ranked = [ranks(one) for one in maps.values()]
    return torch.stack([torch.stack([pearson(one, other) for other in ranked]) for one in ranked])


def _size(images: Images, maps: Tensor) -> tuple[int, ...]:
    """The size of the images, where there is one tensor of them."""
    return tuple(images.shape[2:]) if isinstance(images, Tensor) else tuple(maps.shape[1:])


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ShapeError(
            f"the maps to compare have shapes {tuple(a.shape)} and {tuple(b.shape)}; expected the same: "
            "upsample the smaller ones first"
        )
