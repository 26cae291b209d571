"""`BaseCAM`, the base class of all methods. A subclass with `weights` or `saliency` is a method."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, TypeVar, get_args, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.capture import TargetLayers, check_model, find_layers
from gradcam_kit.errors import InputError, ShapeError, UnknownNameError, kind_of
from gradcam_kit.foreign import says_what_it_is_here
from gradcam_kit.functional import Fusion, Normalization, fuse, weighted_sum
from gradcam_kit.methods import contract
from gradcam_kit.methods.contract import gradients_of
from gradcam_kit.methods.declaration import Declared
from gradcam_kit.methods.engine.engine import explain_many
from gradcam_kit.methods.engine.explanation import Explanation
from gradcam_kit.methods.engine.sanity import SanityCheck, check
from gradcam_kit.options import one_of, positive_int
from gradcam_kit.types import Evidence, GradientRule, Images, LayerCapture, Reshape

__all__ = ["METHODS", "BaseCAM", "gradients_of"]

METHODS: dict[str, type[BaseCAM]] = contract.METHODS
"""Every named method, keyed by its name ("grad-cam", ...)."""

_log = logging.getLogger("gradcam_kit")
_Own = TypeVar("_Own", bound="BaseCAM")

if TYPE_CHECKING:
    NamedLayers = dict[str, nn.Module]

    class _TargetLayers:
        """The type of `target_layers`: any form of layers when set; when read, modules by name, or None."""

        @overload
        def __get__(self, cam: None, owner: type) -> None: ...
        @overload
        def __get__(self, cam: object, owner: type) -> NamedLayers | None: ...
        def __get__(self, cam: object, owner: type) -> NamedLayers | None: ...
        def __set__(self, cam: object, layers: TargetLayers | NamedLayers | None) -> None: ...


class BaseCAM(Declared):
    """Explain a model with a class activation mapping method. Calling an instance with images returns heatmaps.

    The constructor neither attaches hooks to the model nor changes it. A subclass implements `weights` or `saliency`.
    Its annotated attributes with a default, such as `samples: int = 4`, become keyword arguments of the constructor,
    which `check_options` can validate. `class MyCAM(BaseCAM, name="my-cam")` registers the subclass in `METHODS`.

    Args:
        model: any PyTorch model; wrappers (DataParallel, compiled) are unwrapped.
        target_layers: a module, its dotted name, or a sequence of modules or names. None = chosen by running the model
            on the images: for most methods, the last spatial layer on which the score depends. For a module that
            returns several maps, "fpn:1" selects the second map; for a module that runs several times in a pass,
            "act#2" selects the second call.
        reshape: function from the layer's output to `(n, k, *s)`; None = the layout is inferred (maps, channels-last
            maps or tokens). The function may only rearrange values, and must accept any number of samples. If `*s` are
            not the axes of the images, heatmaps have the axes of the layer.
        image_input: for a model with several inputs, the position of the images in the tuple, or their key in the
            mapping. Masks are applied to this input, and heatmaps have its size. None = the floating-point input on
            which the layers depend, preferably one with 2 or 3 position axes.
        fusion: how the maps of several layers are combined: "mean", "max" or "product" of the normalized maps, or "sum"
            of the signed ones, before ReLU and normalization.
        normalize: "minmax", "max" (division by the maximum) or "none", per image and target.
        batch_size: maximum number of rows (changed images or activations) in one forward pass, for methods that run the
            model on these. On a CPU, passes over large images have fewer rows if that is faster; the maps are the same
            up to rounding.
        keep_modes: leave modules in train mode as they are, for dropout that is active on purpose (MC dropout); by
            default every module runs in eval mode. With active dropout, maps are random: they differ from call to call
            unless `torch.manual_seed` is called before each call, and the maps of a batch differ from those of its
            images one by one. Batch norms in train mode mix the images of a batch. The modes and buffers of all modules
            are restored in any case.
        gradient_rule: "exact", as in the papers, or "balanced" (LibraGrad, https://arxiv.org/abs/2411.16760), for
            methods that use gradients. The balanced backward pass treats denominators of normalizations, gates and
            attention as constant factors, so that activation times gradient is the contribution of each position. It
            does not change the maps of ReLU networks. See `BalancedCAM`.
    """

    model: nn.Module = field(kw_only=False)
    if TYPE_CHECKING:
        target_layers: _TargetLayers = field(default=_TargetLayers(), kw_only=False)
    else:
        target_layers: TargetLayers | Mapping[str, nn.Module] | None = field(default=None, kw_only=False)
    reshape: Reshape | None = None
    fusion: Fusion = "mean"
    normalize: Normalization = "minmax"
    batch_size: int = 64
    keep_modes: bool = False
    image_input: int | str | None = None
    gradient_rule: GradientRule | str = "exact"  # accept any string, so that a wrong one gets our error message
    # The layers that were chosen for the last image size, so that a loop over batches explores the model only once.
    chosen_layers: dict[tuple[int, ...], dict[str, nn.Module]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        given, layers = self.model, vars(self)["target_layers"]
        self.model = check_model(given)
        if layers is not None:
            names = list(layers) if isinstance(layers, Mapping) else layers
            self.target_layers = find_layers(self.model, names, given)
        one_of("fusion", self.fusion, get_args(Fusion))
        one_of("normalize", self.normalize, get_args(Normalization))
        self.batch_size = positive_int("batch_size", self.batch_size)
        self.keep_modes = bool(self.keep_modes)
        self.check_options()
        _check_rule(self)

    def check_options(self) -> None:
        """Raise OptionError for values that the method cannot use.

        A subclass of a method with options calls `super().check_options()` first.
        """

    def __enter__(self: _Own) -> _Own:
        """Return the object itself. A `with` block is optional, because no hook remains attached between calls."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: there is nothing to release."""

    @says_what_it_is_here
    def __call__(self, images: Images, targets: Any = None, **forward_kwargs: Any) -> Float[Tensor, "n *mt"]:
        """Explain a batch and return its heatmaps.

        Args:
            images: `(n, c, *t)` with 1, 2 or 3 position axes, or a tuple or mapping of inputs for models with several.
            targets: None = the predicted class of each sample; an int = this class for all samples; class indices
                `(n,)`; class indices `(n, m)` for m classes of each sample from one forward pass; or a callable from
                the model's output to scores `(n,)`. Names can replace indices if the model has `class_names`.
            forward_kwargs: keyword arguments passed on to the model.

        Returns:
            Heatmaps `(n, *t)`, or `(n, m, *t)` for `(n, m)` targets: float32, detached, on the device of the images,
            and in [0, 1] unless `normalize="none"`. A map without positive evidence is all zeros. If all maps are zero,
            the logger `gradcam_kit` warns, but only on a CPU, because on other devices the check would have to
            synchronize.
        """
        explanation = self.explain(images, targets, **forward_kwargs)
        if explanation.empty_because:
            _log.warning(
                "%s found no positive evidence at %s in any image, so all heatmaps are zeros: %s",
                type(self).__name__,
                ", ".join(explanation.layers),
                explanation.empty_because,
            )
        return explanation.heatmaps

    @says_what_it_is_here
    def explain(self, images: Images, targets: Any = None, **forward_kwargs: Any) -> Explanation:
        """Explain a batch and return everything that the pass produced. The arguments are those of a call."""
        return explain_many([self], images, targets, **forward_kwargs)[0]

    def check(self, images: Images, targets: Any = None, *, seed: int = 0, **forward_kwargs: Any) -> SanityCheck:
        """Run sanity checks: do the maps change with the model's parameters and with the class?

        The images are explained once as in a call, then for another class, then with random parameters of the model, at
        about six times the cost of a call. Printing the result shows its findings; `passed` and `warnings` summarize
        them. The arguments are those of a call.
        """
        return check(self, images, targets, seed, forward_kwargs)

    def __repr__(self) -> str:
        layers = "automatic layer" if self.target_layers is None else f"layers={list(self.target_layers)}"
        parts = [type(self.model).__name__, layers]
        for option in inspect.signature(type(self)).parameters.values():
            value = self.__dict__.get(option.name, option.default)
            if option.kind is option.KEYWORD_ONLY and value != option.default:
                parts.append(f"{option.name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *w"]:
        """Return weights of the channels, `(n, k, 1, ...)`, or of channels and positions, `(n, k, *s)`."""
        raise NotImplementedError(f"{type(self).__name__} must implement weights(layer) or saliency(layer)")

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return the signed map of one target at the layer's resolution: sum_k w_k A_k unless a method overrides it."""
        weights = self.weights(layer)
        _check_weights(self, weights, layer.activations)
        return weighted_sum(layer.activations, weights)

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """Return the signed maps of all targets. Override this method to share work between targets."""
        if layer.scores is None or layer.scores.ndim == 1:
            return self.saliency(layer)
        count = layer.scores.shape[1]
        if self.class_agnostic:
            one = self.saliency(layer)
            return one[:, None].expand(-1, count, *one.shape[1:])
        return torch.stack([self.saliency(layer.of_target(j)) for j in range(count)], dim=1)

    def layer_importance(self, layer: LayerCapture) -> Float[Tensor, "n *m"] | None:
        """Return the weight of a layer when several layers are fused. None gives all layers the same weight."""
        return None

    def fuse(
        self, heatmaps: list[Float[Tensor, "r *t"]], importance: list[Float[Tensor, " r"]]
    ) -> Float[Tensor, "r *t"]:
        """Combine the maps of several layers, given from the shallowest to the deepest, as `fusion` says."""
        return fuse(heatmaps, self.fusion)

    def scale(self, heatmaps: Float[Tensor, "r *s"], depth: int, layers: int) -> Float[Tensor, "r *s"]:
        """Adjust the normalized maps of a layer before the layers are fused. `depth` is 0 at the shallowest layer."""
        return heatmaps


def _check_rule(cam: BaseCAM) -> None:
    """Raise an error for a gradient rule that is unknown, or that does not apply to the method.

    Raises:
        UnknownNameError: a rule that does not exist.
        InputError: balanced gradients for a method without gradients, or with its own gradient rule.
    """
    if one_of("gradient_rule", cam.gradient_rule, get_args(GradientRule), UnknownNameError) == "exact":
        return
    method = type(cam).__name__
    for evidence, reason in _WITHOUT_RULE.items():
        if evidence in cam.needs:
            raise InputError(f'{method} does not accept gradient_rule="balanced", because {reason}; use "exact"')
    if not cam.needs & Evidence.RULED:
        raise InputError(f'{method} uses no gradients, so gradient_rule="balanced" has no effect; leave it out')


_WITHOUT_RULE = {
    Evidence.CURVATURE: "it needs second derivatives, which the balanced backward pass does not define",
    Evidence.WEIGHT_GRADIENTS: (
        "it differentiates a layer with respect to its own weights, not the score with respect to the layer"
    ),
    Evidence.GUIDED: "guided backpropagation has its own rule for gradients",
}


def _check_weights(cam: BaseCAM, weights: Any, activations: Tensor) -> None:
    """Raise ShapeError unless there is one weight per channel, or one per channel and position."""
    n, k, *positions = activations.shape
    fits = isinstance(weights, Tensor) and weights.ndim == activations.ndim and tuple(weights.shape[:2]) == (n, k)
    if fits and all(size in (1, all_of) for size, all_of in zip(weights.shape[2:], positions, strict=True)):
        return
    found = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else kind_of(weights)
    ones = (n, k, *(1 for _ in positions))
    raise ShapeError(
        f"{type(cam).__name__}.weights returned {found}; expected {ones}, one weight for each sample and channel "
        f"(keepdim=True keeps the axes of size 1), or {(n, k, *positions)}, one weight for each position as well"
    )
