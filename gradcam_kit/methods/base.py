"""`BaseCAM`: what all methods share, and the registry of those that have a name."""

from __future__ import annotations

import inspect
import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import TypedDict

from gradcam_kit.capture import ClassLogit, ClassTarget, TargetLayers, check_model, find_layers
from gradcam_kit.errors import CaptureError, ShapeError, UnknownNameError, kind_of
from gradcam_kit.functional import Fusion, Normalization, fuse, weighted_sum
from gradcam_kit.methods.engine.explanation import Explanation
from gradcam_kit.options import Registry, one_of, positive_int
from gradcam_kit.types import Evidence, Images, LayerCapture, LayerChoice, Reshape

if TYPE_CHECKING:
    from gradcam_kit.methods.engine.sanity import SanityCheck

METHODS: dict[str, type[BaseCAM]] = Registry("method")
"""Every method with a name, keyed by it ("grad-cam", ...)."""

_log = logging.getLogger("gradcam_kit")


class LayerOptions(TypedDict, total=False):
    """The options of `BaseCAM` for one layer, as types of the constructors that hand them on."""

    reshape: Reshape | None
    normalize: Normalization
    batch_size: int


class Options(LayerOptions, total=False):
    """All options of `BaseCAM`."""

    fusion: Fusion


class BaseCAM:
    """A class activation mapping method for one model; calling it explains a batch.

    The constructor attaches nothing and changes nothing. A subclass implements `weights` or `saliency`; with
    `class MyCAM(BaseCAM, name="my-cam")` it also joins `METHODS`.

    Args:
        model: any PyTorch model; wrappers (DataParallel, compiled) are looked through.
        target_layers: a module, its dotted name, a sequence of those, or None: the last layer that still has positions
            and on which the score depends, found by running the model on the images.
        reshape: from the layer's output to `(n, k, *s)`; None = inferred (maps, channels-last maps, tokens).
        fusion: how the maps of several layers are combined: "mean", "max" or "product".
        normalize: "minmax", "max" (zero stays zero) or "none", per image and target.
        batch_size: the most masked rows in one forward pass of a method that needs them. On a CPU a pass over large
            images has fewer where that is faster; the maps are the same up to rounding.
    """

    name: ClassVar[str] = ""
    needs: Evidence = Evidence.GRADIENTS
    """What the method needs beyond activations."""
    layer_choice: LayerChoice = LayerChoice.LAST
    """What `target_layers=None` stands for."""
    class_agnostic: bool = False
    """Whether the map is the same for every class."""
    target_type: type[ClassTarget] = ClassLogit
    """How plain class indices are scored."""
    cost: ClassVar[str] = "F + B"
    """Passes: F forward, B backward from the score to the layer, R forward of one masked row."""
    paper: ClassVar[str] = ""
    """Where the method comes from."""

    def __init_subclass__(cls, *, name: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = name
        if "__init__" in cls.__dict__:
            _show_options(cls)
        if not name:
            return
        # The same class again is a module or a notebook cell that was run again.
        taken = METHODS.get(name, cls)
        if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UnknownNameError(f"the method name {name!r} is taken by {METHODS[name].__name__}; choose another one")
        documentation = getattr(sys.modules.get(cls.__module__), "__doc__", None) or cls.__doc__ or ""
        cls.paper = cls.__dict__.get("paper", documentation.strip().partition("\n")[0])
        METHODS[name] = cls

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        reshape: Reshape | None = None,
        fusion: Fusion = "mean",
        normalize: Normalization = "minmax",
        batch_size: int = 64,
    ) -> None:
        self.model = check_model(model)
        self.target_layers = None if target_layers is None else find_layers(self.model, target_layers, model)
        self.reshape = reshape
        self.fusion: Fusion = one_of("fusion", fusion, get_args(Fusion))
        self.normalize: Normalization = one_of("normalize", normalize, get_args(Normalization))
        self.batch_size = positive_int("batch_size", batch_size)
        # The automatic choice for images of the last size, so that a loop over batches explores the model once.
        self.chosen_layers: dict[tuple[int, ...], dict[str, nn.Module]] = {}

    def __call__(self, images: Images, targets: Any = None, **forward_kwargs: Any) -> Float[Tensor, "n *mt"]:
        """Explain a batch.

        Args:
            images: `(n, c, *t)` with 1, 2 or 3 position axes, or a tuple or mapping of inputs for models with several.
            targets: None = the predicted class of each sample; an int for all; class indices `(n,)`; `(n, m)` for m
                classes of each sample from one forward pass; or a callable from the model's output to scores `(n,)`.
            forward_kwargs: passed on to the model.

        Returns:
            Float32 in [0, 1], `(n, *t)`, or `(n, m, *t)` for `(n, m)` targets; detached, on the device of the images.
            A map without positive evidence is all zeros; where all are, the logger `gradcam_kit` says so (on a CPU:
            elsewhere it would have to wait).
        """
        explanation = self.explain(images, targets, **forward_kwargs)
        empty = explanation.is_empty
        if empty.device.type == "cpu" and bool(empty.all()):
            _log.warning(
                "%s found no positive evidence at %s in any image, so all heatmaps are zeros. A head of zeros, as "
                "before training, gives none; what speaks against a class is a target of its own",
                type(self).__name__,
                ", ".join(explanation.layers),
            )
        return explanation.heatmaps

    def explain(self, images: Images, targets: Any = None, **forward_kwargs: Any) -> Explanation:
        """Explain a batch and return everything that the pass produced. Arguments as in calling."""
        from gradcam_kit.methods.engine.engine import explain_many  # which imports this module

        return explain_many([self], images, targets, **forward_kwargs)[0]

    def check(self, images: Images, targets: Any = None, *, seed: int = 0, **forward_kwargs: Any) -> SanityCheck:
        """Whether the maps can explain this model: do they change with its parameters and with the class?

        Explains the images, another class, and the model with random parameters (six times the price of a call). The
        result prints what it found, and has `passed`, `warnings` and the figures. Arguments as in calling.
        """
        from gradcam_kit.methods.engine.sanity import check  # which imports this module

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
        """Weights of the channels, `(n, k, 1, ...)`, or of channels and positions, `(n, k, *s)`."""
        raise NotImplementedError(f"{type(self).__name__} must implement weights(layer) or saliency(layer)")

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """The signed map of one target at the layer's resolution: sum_k w_k A_k unless a method says otherwise."""
        weights = self.weights(layer)
        _check_weights(self, weights, layer.activations)
        return weighted_sum(layer.activations, weights)

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """The signed maps of all targets; for methods that can share work between them."""
        if layer.scores is None or layer.scores.ndim == 1:
            return self.saliency(layer)
        count = layer.scores.shape[1]
        if self.class_agnostic:
            one = self.saliency(layer)
            return one[:, None].expand(-1, count, *one.shape[1:])
        return torch.stack([self.saliency(layer.of_target(j)) for j in range(count)], dim=1)

    def importance(self, layer: LayerCapture) -> Float[Tensor, "n *m"] | None:
        """How much a layer counts when several are fused, for methods that weigh layers."""
        return None

    def fuse(
        self, heatmaps: list[Float[Tensor, "r *t"]], importance: list[Float[Tensor, " r"]]
    ) -> Float[Tensor, "r *t"]:
        """Combine the maps of several layers, shallowest first, by `fusion`."""
        return fuse(heatmaps, self.fusion)

    def scale(self, heatmaps: Float[Tensor, "r *s"], depth: int, layers: int) -> Float[Tensor, "r *s"]:
        """Change a normalized map before it is fused with others; `depth` counts from 0, shallowest first."""
        return heatmaps


def gradients_of(layer: LayerCapture) -> Float[Tensor, "n k *s"]:
    """The gradients of a capture, for methods whose `needs` has GRADIENTS."""
    if layer.gradients is None:
        raise CaptureError("no gradients were captured; set needs = Evidence.GRADIENTS in the method's class")
    return layer.gradients


def _check_weights(cam: BaseCAM, weights: Any, activations: Tensor) -> None:
    """Raise ShapeError for weights that neither belong to the channels nor to the channels and positions."""
    n, k, *positions = activations.shape
    fits = isinstance(weights, Tensor) and weights.ndim == activations.ndim and tuple(weights.shape[:2]) == (n, k)
    if fits and all(size in (1, all_of) for size, all_of in zip(weights.shape[2:], positions, strict=True)):
        return
    found = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else kind_of(weights)
    ones = (n, k, *(1 for _ in positions))
    raise ShapeError(
        f"{type(cam).__name__}.weights returned {found}; expected {ones}, one weight for each sample and channel "
        f"(keepdim=True keeps the axes of size 1), or {(n, k, *positions)}, one for each position too"
    )


def _show_options(cls: type[BaseCAM]) -> None:
    """Put what a constructor hands on into its signature, where `help` and notebooks look for it."""
    own = inspect.signature(cls.__init__).parameters.values()
    if not any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in own):
        return
    inherited = inspect.signature(cls.__mro__[1].__init__).parameters.values()  # type: ignore[misc]
    named = {one.name for one in own}
    shown = []
    for one in own:
        if one.kind is one.VAR_POSITIONAL:
            handed_on = [other for other in inherited if other.kind is other.POSITIONAL_OR_KEYWORD]
            shown += [other for other in handed_on[1:] if other.name not in named]
        elif one.kind is one.VAR_KEYWORD:
            shown += [other for other in inherited if other.kind is other.KEYWORD_ONLY and other.name not in named]
        else:
            shown.append(one)
    with suppress(ValueError):  # an order that no signature can have is shown as it is written
        cls.__init__.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
