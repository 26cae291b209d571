"""What the engine asks of a method, the methods that have a name, and what methods ask of a capture.

The engine (`methods/engine/`) runs whatever has the attributes of `Method`; it does not know `BaseCAM`, which is how
methods are written. `METHODS` is filled by `BaseCAM` as its subclasses are defined.
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
"""Every method with a name, keyed by it ("grad-cam", ...)."""


@runtime_checkable
class Method(Protocol):
    """One explanation method on one model, as the engine sees it. `BaseCAM` documents the attributes.

    A method may also have `gradient_rule`; without it, its gradients are exact.
    """

    model: nn.Module
    target_layers: dict[str, nn.Module] | None
    """By name; None: the engine chooses layers by `layer_choice`."""
    chosen_layers: dict[tuple[int, ...], dict[str, nn.Module]]
    """The engine's memory of the layers that it chose: size of the images -> layers."""
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
        """Return how much the layer counts when several are fused; None: all count the same."""
        ...

    def scale(self, heatmaps: Float[Tensor, "r *s"], depth: int, layers: int) -> Float[Tensor, "r *s"]:
        """Change a normalized map before it is fused with others; `depth` counts from 0, shallowest first."""
        ...

    def fuse(
        self, heatmaps: list[Float[Tensor, "r *t"]], importance: list[Float[Tensor, " r"]]
    ) -> Float[Tensor, "r *t"]:
        """Combine the maps of several layers, shallowest first."""
        ...


def rule_of(cam: Method) -> GradientRule:
    """Return how a method's gradients are taken."""
    rule: GradientRule = getattr(cam, "gradient_rule", "exact")
    return rule


def single_pass_methods() -> list[str]:
    """Return the names of the methods that need nothing but the one pass that all of them can share."""
    again = Evidence.RESCORE | Evidence.REPLAY | Evidence.PROBE
    return [name for name, method in METHODS.items() if not method.needs & again]


def gradients_of(layer: LayerCapture) -> Float[Tensor, "n k *s"]:
    """Return the gradients of a capture, for methods whose `needs` has GRADIENTS."""
    if layer.gradients is None:
        raise CaptureError("no gradients were captured; set needs = Evidence.GRADIENTS in the method's class")
    return layer.gradients
