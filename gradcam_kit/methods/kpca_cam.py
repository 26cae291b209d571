"""KPCA-CAM: Karmani et al., MMSP 2024, https://arxiv.org/abs/2410.00267."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.methods.arithmetic.components import centered_rows, fix_sign, principal
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.options import one_of
from gradcam_kit.types import Evidence, LayerCapture

Kernel = Literal["sigmoid", "poly", "rbf", "linear"]
_DEGREE = 3  # degree of the polynomial kernel


def kernel_component(
    activations: Float[Tensor, "n k *s"], kernel: Kernel = "sigmoid", gamma: float | None = None
) -> Float[Tensor, "n *s"]:
    r"""Return the first component of the doubly centered kernel matrix of the positions: $\sqrt{\lambda_1} u_1$.

    Args:
        activations: output of the layer; memory grows with the square of its positions.
        kernel: "sigmoid" $\tanh(\gamma \langle a_i, a_j\rangle + 1)$, "poly" $(\gamma \langle a_i, a_j\rangle + 1)^3$,
            "rbf" $\exp(-\gamma \|a_i - a_j\|^2)$ or "linear". Each channel's mean over the positions is subtracted
            first, because "sigmoid" and "poly" depend on the origin: far from it, the component would separate only the
            weakest positions, the background. Centering, the offset 1 and the default gamma follow a widely used
            implementation; they could not be confirmed against the paper.
        gamma: scale inside the kernel; None = 1 / k.
    """
    rows = centered_rows(activations.flatten(2).mT)
    gamma = 1 / rows.shape[2] if gamma is None else gamma
    products = rows @ rows.mT
    if kernel == "sigmoid":
        products = (gamma * products + 1).tanh()
    elif kernel == "poly":
        products = (gamma * products + 1) ** _DEGREE
    elif kernel == "rbf":
        norms = products.diagonal(dim1=1, dim2=2)
        products = (-gamma * (norms[:, :, None] + norms[:, None] - 2 * products).clamp(min=0)).exp()
    centered = products - products.mean(1, keepdim=True) - products.mean(2, keepdim=True)
    values, vectors = principal(centered + products.mean((1, 2), keepdim=True))
    # If all positions are equal, the matrix holds only rounding errors and has no component.
    rounding = 4 * rows.shape[1] * torch.finfo(rows.dtype).eps * products.abs().amax((1, 2))
    largest = values.where(values > rounding, 0)
    component = fix_sign(vectors) * largest[:, None].sqrt()
    maps: Tensor = component.unflatten(1, activations.shape[2:])
    return maps


class KPCACAM(BaseCAM, name="kpca-cam"):
    """Return the first kernel principal component of the activations, which is the same for every class.

    This nonlinear variant of Eigen-CAM needs memory that grows with the square of the layer's positions, so use a late
    layer. Like Eigen-CAM, it shows the strongest pattern of the activations, not what the model learned.

    Args:
        kernel: "sigmoid", "poly", "rbf" or "linear".
        gamma: scale inside the kernel; None = 1 / number of channels.

    Example:
        >>> from gradcam_kit import KPCACAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> KPCACAM(load_demo_model(), "layer4", kernel="rbf", gamma=0.1)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.NONE
    class_agnostic = True
    cost = "F + eigenproblem"

    kernel: Kernel = "sigmoid"
    gamma: float | None = None

    def check_options(self) -> None:
        """Raise an error for an unknown kernel."""
        one_of("kernel", self.kernel, get_args(Kernel))

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return the component with the sign chosen by `fix_sign`."""
        return kernel_component(layer.activations, self.kernel, self.gamma)
