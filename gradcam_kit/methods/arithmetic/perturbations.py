"""Perturb inputs: noise that all samples share, and many copies of a batch in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import move
from gradcam_kit.types import LayerCapture


def gaussian_noise(draws: int, images: Float[Tensor, "n c *t"], seed: int) -> Float[Tensor, "draws c *t"]:
    """Draw standard normal noise for one image, which all images of a batch share.

    The maps of a batch therefore equal those of its images one by one. The noise is drawn on the host from a generator
    of its own, so that every device gets the same noise and the global random state is untouched.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(draws, *images.shape[1:], generator=generator, dtype=torch.float32, device="cpu")
    return move(noise, images.device, images.dtype)


def probe_targets(
    layer: LayerCapture, copies: Sequence[Float[Tensor, "n c *t"]]
) -> tuple[Float[Tensor, "copies n k *s"], list[Float[Tensor, "copies n k *s"]]]:
    """Return the activations of several copies of the batch, and for each target their gradients."""
    n = len(layer.images)
    index = torch.arange(n, device=layer.images.device)
    activations, gradients = layer.probe(torch.cat(list(copies)), index.repeat(len(copies)))
    activations, gradients = activations.unflatten(0, (len(copies), n)), gradients.unflatten(0, (len(copies), n))
    return activations, list(gradients.unbind(2)) if _has_target_axis(layer) else [gradients]


def stack_targets(layer: LayerCapture, maps: Sequence[Float[Tensor, "n *s"]]) -> Float[Tensor, "n *ms"]:
    """Stack the maps of the targets of `probe_targets` into one tensor, `(n, [m,] *s)`."""
    return torch.stack(list(maps), 1) if _has_target_axis(layer) else maps[0]


def _has_target_axis(layer: LayerCapture) -> bool:
    return layer.scores is not None and layer.scores.ndim == 2
