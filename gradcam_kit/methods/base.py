"""`BaseCAM`: what all methods share, and the registry of those that have a name."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradcam_kit.capture import (
    Capture,
    ClassLogit,
    ClassTarget,
    Inputs,
    Request,
    TargetLayers,
    capture,
    check_model,
    choose_layers,
    find_layers,
    read_inputs,
    resolve_target,
)
from gradcam_kit.errors import (
    CaptureError,
    InputError,
    NonFiniteError,
    UnknownNameError,
)
from gradcam_kit.functional import Fusion, Normalization, finite, fuse, normalize, upsample, weighted_sum
from gradcam_kit.methods.explanation import Explanation
from gradcam_kit.options import one_of, positive_int
from gradcam_kit.types import Evidence, Images, LayerCapture, LayerChoice, Reshape, Target

if TYPE_CHECKING:
    from gradcam_kit.methods.sanity import SanityCheck

METHODS: dict[str, type[BaseCAM]] = {}
"""Every method with a name, keyed by it ("grad-cam", ...)."""


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
        batch_size: the most masked rows in one forward pass of a method that needs them.
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
            A map without positive evidence is all zeros.
        """
        return self.explain(images, targets, **forward_kwargs).heatmaps

    def explain(self, images: Images, targets: Any = None, **forward_kwargs: Any) -> Explanation:
        """Explain a batch and return everything that the pass produced. Arguments as in calling."""
        return explain_many([self], images, targets, **forward_kwargs)[0]

    def check(self, images: Images, targets: Any = None, *, seed: int = 0, **forward_kwargs: Any) -> SanityCheck:
        """Whether the maps can explain this model: do they change with its parameters and with the class?

        Explains the images, another class, and the model with random parameters (five to ten times the price of a
        call). The result prints what it found, and has `passed`, `warnings` and the figures. Arguments as in calling.
        """
        from gradcam_kit.methods.sanity import check

        return check(self, images, targets, seed, forward_kwargs)

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *w"]:
        """Weights of the channels, `(n, k, 1, ...)`, or of channels and positions, `(n, k, *s)`."""
        raise NotImplementedError(f"{type(self).__name__} must implement weights(layer) or saliency(layer)")

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """The signed map of one target at the layer's resolution: sum_k w_k A_k unless a method says otherwise."""
        return weighted_sum(layer.activations, self.weights(layer))

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


def explain_all(
    methods: Sequence[BaseCAM], images: Images, targets: Any = None, **forward_kwargs: Any
) -> list[Float[Tensor, "n *mt"]]:
    """Heatmaps of several methods from one capture: as if each was called, at the price of about one.

    Methods on the same model that score classes in the same way share one forward and one backward pass, whatever
    their layers are.

    Args:
        methods: CAM objects.
        images: as in calling one of them.
        targets: as in calling one of them.
        forward_kwargs: passed on to the model.

    Returns:
        One tensor of heatmaps per method, in their order.
    """
    return [explanation.heatmaps for explanation in explain_many(methods, images, targets, **forward_kwargs)]


@torch.inference_mode(False)
def explain_many(
    cams: Sequence[BaseCAM], images: Images, targets: Any = None, **forward_kwargs: Any
) -> list[Explanation]:
    """`explain_all` with everything that the passes produced."""
    groups: dict[Any, list[int]] = {}
    for position, cam in enumerate(cams):
        if not isinstance(cam, BaseCAM):
            raise InputError(
                f"methods[{position}] is a {type(cam).__name__}; expected CAM objects such as GradCAM(model)"
            )
        scored = None if callable(targets) else cam.target_type  # a callable is the same target for all methods
        groups.setdefault((id(cam.model), scored, cam.reshape), []).append(position)
    inputs = read_inputs(images, forward_kwargs)
    results: dict[int, Explanation] = {}
    for positions in groups.values():
        explanations = _explain_group([cams[position] for position in positions], inputs, targets)
        results.update(zip(positions, explanations, strict=True))
    return [results[position] for position in range(len(cams))]


def _explain_group(cams: list[BaseCAM], inputs: Inputs, targets: Any) -> list[Explanation]:
    """Explain with methods that can share one pass."""
    target = _read_target(cams[0], targets, inputs.n)
    if inputs.n == 0:
        return [_explain_nothing(cam, inputs, target) for cam in cams]
    with capture_for(cams, inputs, target) as (captured, layers):
        return [
            assemble(cam, captured, own, *signed_maps(cam, captured, own))
            for cam, own in zip(cams, layers, strict=True)
        ]


@contextmanager
def capture_for(
    cams: list[BaseCAM], inputs: Inputs, targets: Any, settled: bool = False
) -> Iterator[tuple[Capture, list[tuple[str, ...]]]]:
    """One pass that serves all of these methods, and the names of each one's layers.

    Args:
        cams: methods that can share one pass.
        inputs: at least one sample.
        targets: as in calling a method.
        settled: the target is that of an earlier pass, and takes nothing from this one's output.
    """
    first = cams[0]
    target = _read_target(first, targets, inputs.n)
    _choose_layers(cams, inputs, target)
    own = [_layers_of(cam, inputs.size) for cam in cams]
    needs_at: dict[str, Evidence] = {}
    for cam, layers in zip(cams, own, strict=True):
        for name in layers:
            needs_at[name] = needs_at.get(name, Evidence.NONE) | cam.needs
    request = Request(
        layers={name: module for layers in own for name, module in layers.items()},
        needs_at=needs_at,
        targets=target,
        target_type=first.target_type,
        reshape=first.reshape,
        settled=settled,
    )
    with capture(first.model, inputs, request) as captured:
        yield captured, [tuple(layers) for layers in own]


def _read_target(cam: BaseCAM, targets: Any, n: int) -> Target | None:
    target = resolve_target(targets, cam.target_type)
    if isinstance(target, ClassTarget):
        target.check_samples(n)
    return target


def _choose_layers(cams: list[BaseCAM], inputs: Inputs, target: Target | None) -> None:
    """Choose the layers of the methods that leave them open and meet this size for the first time; once for all."""
    found: dict[LayerChoice, dict[str, nn.Module]] = {}
    for cam in cams:
        choice = cam.layer_choice
        if cam.target_layers is not None and not choice.is_fixed:
            continue
        # Other targets than classes may depend on other layers, so for them nothing is remembered.
        known = cam.chosen_layers.get(inputs.size, {}) if target is None or isinstance(target, ClassTarget) else {}
        modules = dict(cam.model.named_modules(remove_duplicate=False))
        if not known or any(modules.get(name, module) is not module for name, module in known.items()):
            if choice not in found:
                found[choice] = choose_layers(cam.model, inputs, target, cam.target_type, choice)
            cam.chosen_layers = {inputs.size: found[choice]}


def _layers_of(cam: BaseCAM, size: tuple[int, ...]) -> dict[str, nn.Module]:
    return cam.chosen_layers.get(size, cam.target_layers or {})


def signed_maps(cam: BaseCAM, captured: Capture, layers: tuple[str, ...]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The saliency of each layer, shallowest first, and the layers' importance where the method weighs them."""
    saliency, importance = {}, []
    for name in sorted(layers, key=captured.order.index):
        layer = captured.layer(name, cam.needs, cam.batch_size)
        saliency[name] = cam.saliencies(layer)
        share = cam.importance(layer)
        if share is not None:
            importance.append(share)
        captured.checks.add(~torch.isfinite(finite(saliency[name])), _non_finite(cam, name, saliency[name]))
    return saliency, importance


def assemble(
    cam: BaseCAM, captured: Capture, layers: tuple[str, ...], saliency: dict[str, Tensor], importance: list[Tensor]
) -> Explanation:
    """The explanation of the captured samples by these signed maps, given as `signed_maps` does."""
    leading = tuple(captured.scores.shape) if captured.scores is not None else (captured.inputs.n,)
    rows = [maps.flatten(0, len(leading) - 1) for maps in saliency.values()]
    shares = [share.flatten() for share in importance]
    size = captured.inputs.size
    last_stage = copy.copy(cam)  # as it is now, and without the model, which an explanation must not keep alive
    for name in ("model", "target_layers", "chosen_layers"):
        del last_stage.__dict__[name]
    return Explanation(
        heatmaps=lambda: _heatmaps(last_stage, rows, shares, size).unflatten(0, leading),  # type: ignore[arg-type]
        saliency={name: saliency[name] for name in layers},
        targets=captured.classes,
        scores=captured.scores,
        output=captured.output,
        layers=layers,
        is_empty=_is_empty(rows, shares, cam.fusion, size).unflatten(0, leading),
    )


@torch.inference_mode(False)
@torch.no_grad()
def _heatmaps(
    cam: BaseCAM, saliency: list[Float[Tensor, "r ..."]], importance: list[Tensor], size: tuple[int, ...]
) -> Float[Tensor, "r *t"]:
    """The last stage: ReLU, normalize and upsample each layer, fuse the layers, normalize."""
    with torch.autocast(saliency[0].device.type, enabled=False):
        maps = []
        for depth, signed in enumerate(saliency):
            normalized = normalize(signed.clamp(min=0), cam.normalize)
            maps.append(upsample(cam.scale(normalized, depth, len(saliency)), size))
        return normalize(cam.fuse(maps, importance), cam.normalize).to(torch.float32)


def _is_empty(
    saliency: list[Float[Tensor, "r ..."]], importance: list[Tensor], fusion: Fusion, size: tuple[int, ...]
) -> Bool[Tensor, " r"]:
    """Which rows have no positive evidence: no layer that counts has any, or for a product, they share no position."""
    if fusion == "product" and not importance:
        shared = fuse([upsample(normalize(maps.clamp(min=0), "max"), size) for maps in saliency], "product")
        return shared.flatten(1).amax(1) <= 0
    empty = torch.stack([maps.flatten(1).amax(1) <= 0 for maps in saliency])
    return (empty | (torch.stack(importance) <= 0) if importance else empty).all(0)


def _non_finite(cam: BaseCAM, layer: str, maps: Tensor) -> Callable[[int], Exception | None]:
    def error(sample: int) -> Exception | None:
        if torch.isfinite(maps[sample]).all():
            return None  # only their sum overflowed
        return NonFiniteError(
            f"{type(cam).__name__} gave NaN or infinite values at layer {layer!r} for image {sample} of the batch, "
            "although activations and gradients are finite; use float32, or choose another layer"
        )

    return error


def _explain_nothing(cam: BaseCAM, inputs: Inputs, target: Target | None) -> Explanation:
    """The explanation of an empty batch."""
    classes = getattr(target, "classes", None)
    leading = tuple(classes.shape) if isinstance(classes, Tensor) else (0,)
    empty = inputs.images.new_zeros(leading)
    return Explanation(
        heatmaps=inputs.images.new_zeros((*leading, *inputs.size), dtype=torch.float32),
        saliency={},
        targets=empty.long() if target is None or isinstance(target, ClassTarget) else None,
        scores=empty,
        output=None,
        layers=tuple(cam.target_layers or ()),
        is_empty=empty.bool(),
    )
