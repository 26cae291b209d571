"""Attention rollout: Abnar & Zuidema, ACL 2020, https://arxiv.org/abs/2005.00928."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import CaptureError, OptionError
from gradcam_kit.functional import HeadFusion, rollout_step
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.options import one_of
from gradcam_kit.types import Attention, Evidence, LayerCapture, LayerChoice


def relevance_of_patches(attention: Attention, steps: Sequence[Float[Tensor, "n t t"]]) -> Float[Tensor, "n *s"]:
    """Return the class token's row of `steps[-1] @ ... @ steps[0]` without prefix columns, on the grid of patches.

    Without a class token, the result is the mean of the patches' rows. Only this row is computed, not the product of
    the matrices.
    """
    row = torch.zeros_like(steps[0][:, 0])
    if attention.has_class_token:
        row[:, 0] = 1
    else:
        row[:, attention.prefix :] = 1 / (row.shape[1] - attention.prefix)
    for step in reversed(steps):
        row = torch.einsum("nq,nqk->nk", row, step)
    patches: Tensor = row[:, attention.prefix :].unflatten(1, attention.grid)
    return patches


def attention_of(layer: LayerCapture) -> Attention:
    """Return the attention of a capture, for methods whose `needs` has ATTENTION."""
    if layer.attention is None:
        raise CaptureError("no attention was captured; set needs = Evidence.ATTENTION in the method's class")
    return layer.attention


class AttentionRollout(BaseCAM, name="attention-rollout"):
    r"""Follow the attention back through all blocks: $R = \hat A_L \cdots \hat A_1$, the same for every class.

    $\hat A_l$ is the fused attention of block $l$ plus the identity, for the residual branch, with rows that sum to 1.

    The map shows where a transformer gathers its information, and costs only a forward pass. It ignores values and
    classes, so it does not explain a decision; GenericAttention and LeGrad do. `target_layers` is not used. The method
    needs a transformer in which all tokens of an image attend to each other.

    Args:
        heads: how the heads of a block are fused: "mean", "max" or "min".
        discard: the share of the entries of a block's fused attention, the smallest ones, that are set to zero, in
            [0, 1).

    Example:
        >>> import torch
        >>> from torchvision.models import VisionTransformer
        >>> from gradcam_kit import AttentionRollout
        >>> model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
        >>> AttentionRollout(model, heads="max", discard=0.5)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 32, 32])
    """

    needs = Evidence.ATTENTION
    layer_choice = LayerChoice.ATTENTION
    class_agnostic = True
    cost = "F"

    heads: HeadFusion = "mean"
    discard: float = 0.0

    def check_options(self) -> None:
        """Raise an error for an unknown fusion of heads, or a `discard` outside [0, 1)."""
        one_of("heads", self.heads, get_args(HeadFusion))
        if not 0 <= self.discard < 1:
            raise OptionError(f"discard is {self.discard!r}; expected a share of at least 0 and less than 1")

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return the attention to each patch, followed back through all blocks."""
        attention = attention_of(layer)
        steps = [rollout_step(block, self.heads, self.discard) for block in attention.probabilities]
        return relevance_of_patches(attention, steps)
