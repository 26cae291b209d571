"""LayerCAM: Jiang et al., IEEE Transactions on Image Processing 2021, https://doi.org/10.1109/TIP.2021.3089943."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import Fusion, normalize
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.options import positive
from gradcam_kit.types import LayerCapture


class LayerCAM(BaseCAM, name="layer-cam"):
    r"""Weight each position by its positive gradient: $\sum_k \mathrm{ReLU}(G_k) \odot A_k$.

    The method also works at early layers, where it shows fine detail; combine several layers for detail and semantics.
    Evidence against the class is ignored. Before several maps are fused, Equation 9 turns the map M of each shallow
    layer into $\tanh(\gamma M / \max M)$. All layers but the last one to run are treated as shallow; this reading could
    not be confirmed against the paper.

    Args:
        fusion: fusion of several layers: "max" as in the paper, "mean", "product", or "sum", which omits Equation 9.
        gamma: gamma of Equation 9, above 0.

    Example:
        >>> from gradcam_kit import LayerCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> cam = LayerCAM(load_demo_model(), ["layer1", "layer4"], gamma=1.0)
        >>> cam(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    fusion: Fusion = "max"
    gamma: float = 2.0

    def check_options(self) -> None:
        """Raise OptionError unless gamma is above 0."""
        positive("gamma", self.gamma)

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *s"]:
        """Return the positive part of the gradients."""
        return gradients_of(layer).clamp(min=0)

    def scale(self, heatmaps: Float[Tensor, "r *s"], depth: int, layers: int) -> Float[Tensor, "r *s"]:
        """Apply Equation 9 to all layers but the deepest."""
        return heatmaps if depth == layers - 1 else (self.gamma * normalize(heatmaps, "max")).tanh()
