"""HiResCAM: Draelos & Carin 2020, https://arxiv.org/abs/2011.08891."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.types import LayerCapture


class HiResCAM(BaseCAM, name="hires-cam"):
    r"""Weight each position by its own gradient: $\sum_k G_k \odot A_k$.

    If only linear operations follow, such as mean pooling and a linear layer, the map shows exactly the positions that
    the score uses, and sums to the score minus the bias. At early layers it is noisier than that of Grad-CAM.

    Example:
        >>> from gradcam_kit import HiResCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> model = load_demo_model()
        >>> found = HiResCAM(model, "layer4").explain(collate([draw(0)]).images, targets=2)
        >>> bool((found.saliency["layer4"].sum() - found.scores + model.fc.bias[2]).abs() < 1e-4)
        True
    """

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *s"]:
        """Return the gradients themselves."""
        return gradients_of(layer)
