"""Grad-ECLIP: Zhao et al., ICML 2024, https://arxiv.org/abs/2502.18816."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from gradcam_kit.errors import CaptureError
from gradcam_kit.functional import normalize
from gradcam_kit.methods.attention_rollout import attention_of
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.types import Evidence, LayerCapture, LayerChoice


def grad_eclip_map(
    gradient: Float[Tensor, "n d"],
    query: Float[Tensor, "n d"],
    keys: Float[Tensor, "n patches d"],
    values: Float[Tensor, "n patches d"],
) -> Float[Tensor, "n patches"]:
    r"""Return what each patch's value adds to the score: $\lambda_i \sum_d G_d v_{i,d}$.

    Args:
        gradient: d score / d output of the last attention at the class token, before the output projection.
        query: query of the class token.
        keys: keys of the patches.
        values: values of the patches.

    Returns:
        Signed values. $\lambda$ replaces the attention, which is too sparse; $\lambda_i$ is the cosine of the class
        token's query and key i, min-max normalized over the patches.
    """
    loose = normalize(cosine_similarity(query[:, None], keys, dim=-1))
    return loose * (values @ gradient[..., None])[..., 0]


class GradECLIP(BaseCAM, name="grad-eclip"):
    """Weight the values of the last attention by the gradient at the class token and the similarity of query and key.

    The method is made for CLIP's image encoder with `targets=EmbeddingSimilarity(text)`, and works for any transformer
    with a class token. It uses only the last block. It concatenates the model's heads, and takes the gradient before
    the output projection, where the gradient has the axes of the values. The released code instead runs the last block
    with one head, and compares queries and keys after the output projection. `target_layers` is not used.

    Example:
        >>> import torch
        >>> from torchvision.models import VisionTransformer
        >>> from gradcam_kit import GradECLIP
        >>> model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
        >>> _ = torch.nn.init.normal_(model.heads.head.weight)  # torchvision initializes this weight to zero
        >>> GradECLIP(model)(torch.rand(2, 3, 32, 32), targets=1).shape
        torch.Size([2, 32, 32])
    """

    needs = Evidence.ATTENTION | Evidence.PROJECTIONS
    layer_choice = LayerChoice.ATTENTION
    cost = "F + B through the last attention"

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return the map of the last block."""
        attention = attention_of(layer)
        own = attention.projections
        if own is None or not attention.has_class_token:
            raise CaptureError(
                "Grad-ECLIP explains the class token of a transformer, and this model has none; use GenericAttention"
            )
        keys, values = own.keys[:, attention.prefix :], own.values[:, attention.prefix :]
        patches = grad_eclip_map(own.gradients[:, 0], own.queries[:, 0], keys, values)
        saliency: Tensor = patches.unflatten(1, attention.grid)
        return saliency
