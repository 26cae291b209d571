"""The interface between engine and methods: the `Method` protocol, the registry, and access to captured evidence.

The engine (`methods/engine/`) runs any object that has the attributes of `Method`; it does not import `BaseCAM`, the
base class of the methods. `METHODS` is filled by `BaseCAM` as its subclasses are defined.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.errors import CaptureError
from gradcam_kit.functional import Fusion, Normalization
from gradcam_kit.options import Registry
from gradcam_kit.targets.classes import ClassTarget
from gradcam_kit.types import Evidence, GradientRule, LayerCapture, LayerChoice, Reshape

METHODS: dict[str, type[Any]] = Registry("method")
"""Every named method, keyed by its name ("grad-cam", ...)."""


@runtime_checkable
class Method(Protocol):
    """One explanation method on one model, as the engine sees it. `BaseCAM` documents the attributes.

    A method may also have a `gradient_rule`; the gradients of a method without this attribute are exact.
    """

    model: nn.Module
    target_layers: dict[str, nn.Module] | None
    """Layers by name; None lets the engine choose them by `layer_choice`."""
    chosen_layers: dict[tuple[int, ...], dict[str, nn.Module]]
    """The last automatic choice of layers, by the size of the images. A choice for a target other than classes has the
    key () and is not reused.
    """
    reshape: Reshape | None
    image_input: int | str | None
    keep_modes: bool
    fusion: Fusion
    normalize: Normalization
    batch_size: int
    needs: Evidence
    layer_choice: LayerChoice
    target_type: type[ClassTarget]

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """Return the signed maps of all targets, at the layer's resolution."""
        ...

    def layer_importance(self, layer: LayerCapture) -> Float[Tensor, "n *m"] | None:
        """Return the weight of the layer when several layers are fused. None gives all layers the same weight."""
        ...

    def scale(self, heatmaps: Float[Tensor, "r *s"], depth: int, layers: int) -> Float[Tensor, "r *s"]:
        """Adjust the normalized maps of a layer before the layers are fused. `depth` is 0 at the shallowest layer."""
        ...

    def fuse(
        self, heatmaps: list[Float[Tensor, "r *t"]], importance: list[Float[Tensor, " r"]]
    ) -> Float[Tensor, "r *t"]:
        """Combine the maps of several layers, given from the shallowest to the deepest."""
        ...


def rule_of(cam: Method) -> GradientRule:
    """Return the gradient rule of a method, which is "exact" if the method does not define one."""
    rule: GradientRule = getattr(cam, "gradient_rule", "exact")
    return rule


def single_pass_methods() -> list[str]:
    """Return the names of the methods that need no forward pass of their own, so that they can share one capture."""
    again = Evidence.RESCORE | Evidence.REPLAY | Evidence.PROBE
    return [name for name, method in METHODS.items() if not method.needs & again]


def gradients_of(layer: LayerCapture) -> Float[Tensor, "n k *s"]:
    """Return the gradients of a capture, for methods whose `needs` has GRADIENTS."""
    if layer.gradients is None:
        raise CaptureError("no gradients were captured; set needs = Evidence.GRADIENTS in the method's class")
    return layer.gradients
