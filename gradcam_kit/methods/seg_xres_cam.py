"""Seg-XRes-CAM: Hasany et al., CVPR Workshops 2023."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.methods.base import BaseCAM, Options, gradients_of
from gradcam_kit.options import one_of, positive_int
from gradcam_kit.types import LayerCapture

Pool = Literal["mean", "max"]
_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def pool_blocks(gradients: Float[Tensor, "n k *s"], window: int, pool: Pool = "mean") -> Float[Tensor, "n k *s"]:
    """Replace each value by the mean or maximum of its block of `window` positions along every axis.

    A ragged last block counts only the positions that exist.
    """
    axes = gradients.ndim - 2
    # In ceil mode a ragged last block is averaged over the positions that exist.
    block = [min(window, size) for size in gradients.shape[2:]]
    pooled = (_MEAN if pool == "mean" else _MAX)[axes](gradients, block, ceil_mode=True)
    for axis in range(2, gradients.ndim):
        blocks = torch.arange(gradients.shape[axis], device=gradients.device) // window
        pooled = pooled.index_select(axis, blocks)
    return pooled


class SegXResCAM(BaseCAM, name="seg-xres-cam"):
    """Gradients pooled in blocks, then multiplied with the activations: between HiResCAM and Grad-CAM.

    Args:
        pool_window: positions per block along each axis; 1 is HiResCAM, all positions with "mean" is Grad-CAM.
        pool: "mean" or "max". The paper's defaults could not be confirmed.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        pool_window: int = 2,
        pool: Pool = "mean",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, target_layers, **options)
        self.pool_window = positive_int("pool_window", pool_window)
        self.pool: Pool = one_of("pool", pool, get_args(Pool))

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *s"]:
        """The pooled gradients."""
        return pool_blocks(gradients_of(layer), self.pool_window, self.pool)
