"""Recipro-CAM: Byun & Lee, CVPR Workshops 2024, https://arxiv.org/abs/2209.14074."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import OptionError
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.methods.einsum_cam import einsum_cam
from gradcam_kit.options import one_of
from gradcam_kit.types import Evidence, LayerCapture

Mode = Literal["mask", "spread"]


def window_weights(positions: torch.Size, window: int, like: Tensor) -> Float[Tensor, "z z"]:
    """Return for each kept position p (row) the weight of every position q: 1 at p, or a Gaussian window of 3 around p.

    The window is 1/4, 1/2, 1/4 along each axis, so 1/16, 1/8, 1/4 in two dimensions; at borders it is cut off, not
    renormalized.
    """
    weights = like.new_ones(1, 1)
    for size in positions:
        distance = torch.arange(size, device=like.device)[:, None] - torch.arange(size, device=like.device)
        axis = (distance == 0).to(like.dtype)
        if window == 3:
            axis = axis / 2 + (distance.abs() == 1).to(like.dtype) / 4
        weights = torch.kron(weights, axis)
    return weights


def by_position(scores: Float[Tensor, "rows *targets"], n: int) -> Float[Tensor, "n *mz"]:
    """Arrange the scores of n samples times z positions, `(n * z, [m])`, into `(n, [m,] z)`."""
    sorted_scores: Tensor = scores.unflatten(0, (n, -1))
    return sorted_scores.movedim(1, -1)


def lift(maps: Float[Tensor, "n *mz"], positions: torch.Size) -> Float[Tensor, "n *ms"]:
    """Subtract the smallest score of each map and lay out the positions."""
    lifted: Tensor = (maps - maps.amin(-1, keepdim=True)).unflatten(-1, positions)
    return lifted


def check_window(window: int) -> int:
    """Return `window` if it is 1 or 3; raise OptionError otherwise."""
    if window not in (1, 3):
        raise OptionError(f"window is {window!r}; expected 1 or 3")
    return window


class ReciproCAM(BaseCAM, name="recipro-cam"):
    r"""Score each position alone: $S_{ij} = y(A \odot m_{ij})$, saliency $S - \min S$.

    The method needs no gradients and explains all classes from the same passes. There is one pass per position, through
    the part of the model after the layer, so use a late layer; before mean pooling and a linear head, the scores follow
    from one product without these passes. The released code scores softmax probabilities; pass `ClassProbability` as
    the target to do the same.

    Args:
        window: positions kept along each axis: 1, or 3 with Gaussian weights.
        mode: for window 3, "mask" weights the activations around the position, and "spread" copies the position's own
            activation to its neighbors, as the released code does. Which mode the paper means could not be confirmed.

    Example:
        >>> from gradcam_kit import ReciproCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> ReciproCAM(load_demo_model(), "layer4", window=3)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.REPLAY | Evidence.HEAD
    cost = "F + Z S"

    window: int = 1
    mode: Mode = "mask"

    def check_options(self) -> None:
        """Raise an error for a window other than 1 and 3, or an unknown mode."""
        check_window(self.window)
        one_of("mode", self.mode, get_args(Mode))

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """Return the scores of all positions, with the smallest of each map subtracted."""
        activations = layer.activations
        n, positions = len(activations), activations.shape[2:]
        weights = window_weights(positions, self.window, activations)
        if layer.head is not None and layer.head.is_linear:
            # Before mean pooling and a linear head, the scores are sums of the CAM, up to a constant.
            flat = einsum_cam(activations, layer.head.target_weights).flatten(-len(positions))
            maps = flat @ weights.T if self.mode == "mask" else flat * weights.sum(1)
        else:
            rows = torch.arange(n * len(weights), device=activations.device)
            scores = torch.cat([self._keep(layer, weights, chunk) for chunk in rows.split(self.batch_size)])
            maps = by_position(scores, n)
        return lift(maps, positions)

    def _keep(self, layer: LayerCapture, weights: Tensor, rows: Tensor) -> Float[Tensor, "m *targets"]:
        """Score position `row % Z` of sample `row // Z` alone."""
        sample_index, kept = rows // len(weights), rows % len(weights)
        flat = layer.activations.flatten(2)
        if self.mode == "mask":
            changed = flat[sample_index] * weights[kept][:, None]
        else:
            changed = flat[sample_index, :, kept][:, :, None] * weights[kept][:, None]
        return layer.replay(changed.unflatten(2, layer.activations.shape[2:]), sample_index)
