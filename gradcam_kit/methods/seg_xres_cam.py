"""Seg-XRes-CAM: Hasany et al., CVPR Workshops 2023."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.options import one_of, positive_int
from gradcam_kit.types import LayerCapture

Pool = Literal["mean", "max"]
_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def pool_blocks(gradients: Float[Tensor, "n k *s"], window: int, pool: Pool = "mean") -> Float[Tensor, "n k *s"]:
    """Replace each value with the mean or maximum of its block of `window` positions along every axis.

    An incomplete last block uses only the positions that exist.
    """
    axes = gradients.ndim - 2
    # In ceil mode, an incomplete last block is averaged over the positions that exist.
    block = [min(window, size) for size in gradients.shape[2:]]
    pooled = (_MEAN if pool == "mean" else _MAX)[axes](gradients, block, ceil_mode=True)
    for axis in range(2, gradients.ndim):
        blocks = torch.arange(gradients.shape[axis], device=gradients.device) // window
        pooled = pooled.index_select(axis, blocks)
    return pooled


class SegXResCAM(BaseCAM, name="seg-xres-cam"):
    r"""Multiply the activations by gradients pooled in blocks: $\sum_k \mathrm{pool}(G_k) \odot A_k$.

    This compromise between HiResCAM and Grad-CAM is made for segmentation with
    `targets=SegmentationTarget(mask, classes)`. There, Grad-CAM's one weight per channel spreads evidence over the
    entire image, and HiResCAM is noisy.

    Args:
        pool_window: positions per block along each axis; 1 gives HiResCAM, and all positions with "mean" give Grad-CAM.
        pool: "mean" or "max". The paper's defaults could not be confirmed.

    Example:
        >>> from gradcam_kit import SegXResCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> SegXResCAM(load_demo_model(), "layer4", pool_window=4, pool="max")(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    pool_window: int = 2
    pool: Pool = "mean"

    def check_options(self) -> None:
        """Raise an error for a window below 1, or an unknown pooling."""
        self.pool_window = positive_int("pool_window", self.pool_window)
        one_of("pool", self.pool, get_args(Pool))

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *s"]:
        """Return the pooled gradients."""
        return pool_blocks(gradients_of(layer), self.pool_window, self.pool)
