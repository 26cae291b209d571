"""LeGrad: Bousselham et al., ICCV 2025, https://arxiv.org/abs/2404.03214."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.errors import OptionError
from gradcam_kit.methods.attention_rollout import attention_of
from gradcam_kit.methods.base import BaseCAM, Options
from gradcam_kit.types import Evidence, LayerCapture, LayerChoice


def legrad_map(gradients: Float[Tensor, "n heads queries keys"]) -> Float[Tensor, "n keys"]:
    r"""How much a block's own score rises with the attention to each key: the mean of $(\partial y_l/\partial A_l)^+$.

    The mean is over heads and queries, prefix tokens included; there is no product with the attention.
    """
    return gradients.clamp(min=0).mean(dim=(1, 2))


class LeGrad(BaseCAM, name="legrad"):
    """The mean over blocks of each block's sensitivity to its attention, where each block has a score of its own.

    That score is what the model would say if the block were the last one: its tokens go through the part of the model
    behind the last block, with the model's own normalization, pooling and head. The released code pools CLIP by the
    mean over all tokens instead, and looks at the last two blocks (`blocks=2`). `target_layers` is not used. Needs a
    transformer in which all tokens of an image attend to each other.

    Args:
        blocks: how many blocks count, from the last one on; None = all.
    """

    needs = Evidence.ATTENTION | Evidence.BLOCK_GRADIENTS
    layer_choice = LayerChoice.ATTENTION
    cost = "F + one B per block"

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        blocks: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, target_layers, **options)
        if blocks is not None and (isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1):
            raise OptionError(f"blocks is {blocks!r}; expected a positive int, or None for all")
        self.blocks = blocks

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """The mean of the blocks' maps."""
        attention = attention_of(layer)
        gradients = (attention.block_gradients or ())[-(self.blocks or 0) :]
        keys = torch.stack([legrad_map(block) for block in gradients]).mean(0)
        saliency: Tensor = keys[:, attention.prefix :].unflatten(1, attention.grid)
        return saliency
