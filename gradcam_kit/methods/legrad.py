"""LeGrad: Bousselham et al., ICCV 2025, https://arxiv.org/abs/2404.03214."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import OptionError
from gradcam_kit.methods.attention_rollout import attention_of
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.types import Evidence, LayerCapture, LayerChoice


def legrad_map(gradients: Float[Tensor, "n heads queries keys"]) -> Float[Tensor, "n keys"]:
    r"""Return how much a block's own score rises with the attention to each key: mean $(\partial y_l/\partial A_l)^+$.

    The mean is taken over heads and queries, including prefix tokens. The gradient is not multiplied by the attention.
    """
    return gradients.clamp(min=0).mean(dim=(1, 2))


class LeGrad(BaseCAM, name="legrad"):
    """Average over the blocks how sensitive each block's own score is to its attention.

    Use this method for large vision transformers, in which the middle blocks matter. It costs one backward pass per
    block. A block's score is what the model would return if this block were the last one: its tokens go through the
    part of the model after the last block, with the model's own normalization, pooling and head. The released code
    pools CLIP by the mean over all tokens instead, and looks at the last two blocks (`blocks=2`). `target_layers` is
    not used. The method needs a transformer in which all tokens of an image attend to each other.

    Args:
        blocks: number of blocks to average, counted from the last; None = all.

    Example:
        >>> import torch
        >>> from torchvision.models import VisionTransformer
        >>> from gradcam_kit import LeGrad
        >>> model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
        >>> _ = torch.nn.init.normal_(model.heads.head.weight)  # torchvision initializes this weight to zero
        >>> LeGrad(model, blocks=1)(torch.rand(2, 3, 32, 32), targets=1).shape
        torch.Size([2, 32, 32])
    """

    needs = Evidence.ATTENTION | Evidence.BLOCK_GRADIENTS
    layer_choice = LayerChoice.ATTENTION
    cost = "F + one B per block"

    blocks: int | None = None

    def check_options(self) -> None:
        """Raise OptionError unless `blocks` is None or a positive int."""
        blocks = self.blocks
        if blocks is not None and (isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1):
            raise OptionError(f"blocks is {blocks!r}; expected a positive int, or None for all")

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return the mean of the blocks' maps."""
        attention = attention_of(layer)
        gradients = (attention.block_gradients or ())[-(self.blocks or 0) :]
        keys = torch.stack([legrad_map(block) for block in gradients]).mean(0)
        saliency: Tensor = keys[:, attention.prefix :].unflatten(1, attention.grid)
        return saliency
