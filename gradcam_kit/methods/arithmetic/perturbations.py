"""Changed inputs that several methods share: noise with one draw for all samples, and probes of many copies."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import OptionError
from gradcam_kit.functional import on_device
from gradcam_kit.types import LayerCapture


def check_std(std: float) -> None:
    """Raise OptionError for what is no standard deviation."""
    if not 0 <= std < inf:
        raise OptionError(f"std is {std!r}; expected a finite number of at least 0")


def gaussian_noise(draws: int, images: Float[Tensor, "n c *t"], seed: int) -> Float[Tensor, "draws c *t"]:
    """Standard normal noise for one image, shared by the batch, so that a batch equals one by one.

    Drawn on the host from its own generator: the same on every device, and the global random state is untouched.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(draws, *images.shape[1:], generator=generator, dtype=torch.float32, device="cpu")
    return on_device(noise, images.device, images.dtype)


def probe_targets(
    layer: LayerCapture, copies: Sequence[Float[Tensor, "n c *t"]]
) -> tuple[Float[Tensor, "copies n k *s"], list[Float[Tensor, "copies n k *s"]]]:
    """Activations of several copies of the batch, and for each target their gradients."""
    n = len(layer.images)
    index = torch.arange(n, device=layer.images.device)
    activations, gradients = layer.probe(torch.cat(list(copies)), index.repeat(len(copies)))
    activations, gradients = activations.unflatten(0, (len(copies), n)), gradients.unflatten(0, (len(copies), n))
    several = layer.scores is not None and layer.scores.ndim == 2
    return activations, list(gradients.unbind(2)) if several else [gradients]
