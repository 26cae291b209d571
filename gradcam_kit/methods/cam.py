"""CAM: Zhou et al., CVPR 2016, https://arxiv.org/abs/1512.04150."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import CaptureError
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.methods.einsum_cam import einsum_cam
from gradcam_kit.types import Evidence, LayerCapture


class CAM(BaseCAM, name="cam"):
    r"""Weight channels by the head's own weights: $\frac{1}{Z}\sum_k W_{ck} A_k$.

    This is the cheapest method: one forward pass explains all classes, without a backward pass. It applies only to
    models that end in mean pooling and one linear layer, for which Grad-CAM gives the same map. The paper pools with a
    sum. For mean pooling, the weight is W / Z, so that the sum of the map, plus the bias, is the logit.

    Example:
        >>> from gradcam_kit import CAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> heatmaps = CAM(load_demo_model(), "layer4")(collate([draw(0)]).images, targets=[[0, 1, 2]])
        >>> heatmaps.shape
        torch.Size([1, 3, 128, 128])
    """

    needs = Evidence.HEAD
    cost = "F"

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """Return the maps of all targets from one contraction.

        Raises:
            CaptureError: the layer is not followed by mean pooling and one linear layer.
        """
        if layer.head is None:
            raise CaptureError(
                f"CAM needs mean pooling and one linear layer after layer {layer.layer!r}, and no linear layer of the "
                "model gives its logits that way; use GradCAM, which equals CAM where CAM is defined"
            )
        return einsum_cam(layer.activations, layer.head.target_weights)
