"""Model-independent maps that belong in every table of metrics, because some metrics can be gamed."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.draws import uniform
from gradcam_kit.functional import at_least_float32, normalize
from gradcam_kit.metrics.draws import identities_of
from gradcam_kit.options import Registry


@runtime_checkable
class Baseline(Protocol):
    """A function that makes model-independent maps."""

    def __call__(
        self, images: Float[Tensor, "n c *t"], seed: int = 0, identities: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n *t"]:
        """Return heatmaps in [0, 1]. Draws depend on the seed and each image's identity (None = its values)."""
        ...


_STREAM = 1
_WIDTH = 0.25


def random_map(
    images: Float[Tensor, "n c *t"], seed: int = 0, identities: Int[Tensor, " n"] | None = None
) -> Float[Tensor, "n *t"]:
    """Return an independent draw of U(0, 1) at every position."""
    return uniform(tuple(images.shape[2:]), identities_of(identities, images), seed, _STREAM)


def ones_map(
    images: Float[Tensor, "n c *t"], seed: int = 0, identities: Int[Tensor, " n"] | None = None
) -> Float[Tensor, "n *t"]:
    """Return ones, nearly the map of Fake-CAM (Poppi et al., CVPRW 2021). Metrics flag this map as constant."""
    return images.new_ones((len(images), *images.shape[2:]), dtype=torch.float32)


def center_map(
    images: Float[Tensor, "n c *t"], seed: int = 0, identities: Int[Tensor, " n"] | None = None
) -> Float[Tensor, "n *t"]:
    """Return a centered Gaussian (sigma: a quarter of each side), because photographers center objects."""
    heatmap = images.new_ones((), dtype=torch.float32)
    for size in images.shape[2:]:
        places = torch.linspace(-1, 1, size, device=images.device) if size > 1 else images.new_zeros(1)
        heatmap = heatmap[..., None] * torch.exp(-(places.float() ** 2) / (2 * (2 * _WIDTH) ** 2))
    return heatmap.expand(len(images), *heatmap.shape).contiguous()


def edge_map(
    images: Float[Tensor, "n c *t"], seed: int = 0, identities: Int[Tensor, " n"] | None = None
) -> Float[Tensor, "n *t"]:
    """Return the min-max normalized Sobel magnitude of the mean channel: convincing, yet independent of the model."""
    gray = at_least_float32(images).mean(1)
    axes = range(1, gray.ndim)
    squares = torch.zeros_like(gray)
    for along in axes:
        response = gray
        for axis in axes:
            response = _difference(response, axis) if axis == along else _smooth(response, axis)
        squares = squares + response**2
    return normalize(squares.sqrt()).float()


BASELINES: dict[str, Baseline] = Registry("baseline")
"""Every baseline, keyed by its name. Each is a function of images, seed and identities."""
BASELINES.update(random=random_map, ones=ones_map, center=center_map, edges=edge_map)


def _neighbors(maps: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    lines = maps.movedim(axis, -1)
    before, after = lines[..., :1], lines[..., -1:]
    padded = torch.cat([before, lines, after], -1)
    return padded[..., :-2].movedim(-1, axis), padded[..., 2:].movedim(-1, axis)


def _difference(maps: Tensor, axis: int) -> Tensor:
    before, after = _neighbors(maps, axis)
    return after - before


def _smooth(maps: Tensor, axis: int) -> Tensor:
    before, after = _neighbors(maps, axis)
    return before + 2 * maps + after
