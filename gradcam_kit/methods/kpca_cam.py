"""KPCA-CAM: Karmani et al., MMSP 2024, https://arxiv.org/abs/2410.00267."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.methods.arithmetic.components import fix_sign, principal
from gradcam_kit.methods.base import BaseCAM, Options
from gradcam_kit.options import one_of
from gradcam_kit.types import Evidence, LayerCapture

Kernel = Literal["sigmoid", "rbf", "linear"]


def kernel_component(
    activations: Float[Tensor, "n k *s"], kernel: Kernel = "sigmoid", gamma: float | None = None
) -> Float[Tensor, "n *s"]:
    r"""First component of the doubly centered kernel matrix of the positions: $\sqrt{\lambda_1} u_1$.

    Args:
        activations: output of the layer; memory grows with the square of its positions.
        kernel: "sigmoid" $\tanh(\gamma \langle a_i, a_j\rangle + 1)$, "rbf" $\exp(-\gamma \|a_i - a_j\|^2)$ or
            "linear". The offset 1 and the default gamma follow the common port; the paper's could not be confirmed.
        gamma: None = 1 / k.
    """
    rows = activations.flatten(2).mT
    gamma = 1 / rows.shape[2] if gamma is None else gamma
    products = rows @ rows.mT
    if kernel == "sigmoid":
        products = (gamma * products + 1).tanh()
    elif kernel == "rbf":
        norms = products.diagonal(dim1=1, dim2=2)
        products = (-gamma * (norms[:, :, None] + norms[:, None] - 2 * products).clamp(min=0)).exp()
    centered = products - products.mean(1, keepdim=True) - products.mean(2, keepdim=True)
    values, vectors = principal(centered + products.mean((1, 2), keepdim=True))
    # Equal positions leave a matrix of rounding errors, which is no component.
    rounding = 4 * rows.shape[1] * torch.finfo(rows.dtype).eps * products.abs().amax((1, 2))
    largest = values.where(values > rounding, 0)
    component = fix_sign(vectors) * largest[:, None].sqrt()
    maps: Tensor = component.unflatten(1, activations.shape[2:])
    return maps


class KPCACAM(BaseCAM, name="kpca-cam"):
    """The first kernel principal component of the activations; the same for every class.

    Args:
        kernel: "sigmoid", "rbf" or "linear".
        gamma: scale inside the kernel; None = 1 / number of channels.
    """

    needs = Evidence.NONE
    class_agnostic = True
    cost = "F + eigenproblem"

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        kernel: Kernel = "sigmoid",
        gamma: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, target_layers, **options)
        self.kernel: Kernel = one_of("kernel", kernel, get_args(Kernel))
        self.gamma = gamma

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """The component, with a fixed sign."""
        return kernel_component(layer.activations, self.kernel, self.gamma)
