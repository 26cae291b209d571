"""CAM: Zhou et al., CVPR 2016, https://arxiv.org/abs/1512.04150."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import CaptureError
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.methods.einsum_cam import einsum_cam
from gradcam_kit.types import Evidence, LayerCapture


class CAM(BaseCAM, name="cam"):
    r"""The head's own weights: $\frac{1}{Z}\sum_k W_{ck} A_k$. All classes from one forward pass, no backward.

    The paper pools by a sum; with mean pooling the weight is W / Z, so that the map plus the bias sums to the logit.
    """

    needs = Evidence.HEAD
    cost = "F"

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """All targets in one contraction.

        Raises:
            CaptureError: the layer is not followed by mean pooling and one linear layer.
        """
        if layer.head is None:
            raise CaptureError(
                f"CAM needs mean pooling and one linear layer behind layer {layer.layer!r}, and no linear layer of the "
                "model gives its logits that way; use GradCAM, which equals CAM where CAM is defined"
            )
        return einsum_cam(layer.activations, layer.head.target_weights)
