"""Refine-CAM: Domeniconi et al. 2026, https://arxiv.org/abs/2605.14641."""

from __future__ import annotations

from gradcam_kit.functional import Fusion
from gradcam_kit.methods.grad_cam_plus_plus import GradCAMPlusPlus
from gradcam_kit.types import LayerChoice


class RefineCAM(GradCAMPlusPlus, name="refine-cam"):
    r"""Multiply the Grad-CAM++ maps of several layers: the semantics of the deepest with the detail of shallower ones.

    The map is $\prod_l M_l$, with each $M_l$ in [0, 1] and at the size of the image. The map is sharper than that of
    the last layer alone. If one layer has no positive evidence, the map is empty (`is_empty`). Without `target_layers`,
    the last layers at the two deepest resolutions are used.

    Args:
        fusion: "product" as in the paper; with "mean", "max" or "sum", one empty layer does not make the map empty.

    Example:
        >>> from gradcam_kit import RefineCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> cam = RefineCAM(load_demo_model(), ["layer2", "layer4"])
        >>> found = cam.explain(collate([draw(0)]).images)
        >>> [tuple(maps.shape) for maps in found.saliency.values()]
        [(1, 32, 32), (1, 16, 16)]
    """

    layer_choice = LayerChoice.RESOLUTIONS

    fusion: Fusion = "product"
