"""Generic attention explainability: Chefer et al., ICCV 2021, https://arxiv.org/abs/2103.15679."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.methods.attention_rollout import attention_of, relevance_of_patches
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.types import Evidence, LayerCapture, LayerChoice


def generic_attention_step(
    attention: Float[Tensor, "n heads t t"], gradients: Float[Tensor, "n heads t t"]
) -> Float[Tensor, "n t t"]:
    r"""Return one block's rule $R \leftarrow R + \bar A R$ as a factor: $I + \bar A$, Equations 5 and 6.

    $\bar A$ is the mean over the heads of $(\nabla A \odot A)^+$.
    """
    relevance = (gradients * attention).clamp(min=0).mean(1)
    return relevance + torch.eye(relevance.shape[-1], dtype=relevance.dtype, device=relevance.device)


class GenericAttention(BaseCAM, name="generic-attention"):
    r"""Follow the attention that raises the score back through all blocks: $R \leftarrow R + \bar A_l R$ from $R = I$.

    This method is a good first choice for vision transformers: it is class-specific and costs one backward pass through
    all blocks, without relevance propagation. `target_layers` is not used. The method needs a transformer in which all
    tokens of an image attend to each other.

    Example:
        >>> import torch
        >>> from torchvision.models import VisionTransformer
        >>> from gradcam_kit import GenericAttention
        >>> model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
        >>> _ = torch.nn.init.normal_(model.heads.head.weight)  # torchvision initializes this weight to zero
        >>> GenericAttention(model)(torch.rand(2, 3, 32, 32), targets=1).shape
        torch.Size([2, 32, 32])
    """

    needs = Evidence.ATTENTION | Evidence.ATTENTION_GRADIENTS
    layer_choice = LayerChoice.ATTENTION
    cost = "F + B through all blocks"

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return the relevance of the patches for the class token."""
        attention = attention_of(layer)
        pairs = zip(attention.probabilities, attention.gradients or (), strict=True)
        return relevance_of_patches(attention, [generic_attention_step(*pair) for pair in pairs])
