"""Turn captured tensors into an explanation: signed maps, then ReLU, normalization, upsampling and fusion."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradcam_kit.capture import Capture, heatmap_size
from gradcam_kit.errors import NonFiniteError, ShapeError, kind_of
from gradcam_kit.functional import finite_probe, fuse, normalize, upsample
from gradcam_kit.methods.contract import Method, rule_of
from gradcam_kit.methods.engine.emptiness import cause_of_empty
from gradcam_kit.methods.engine.explanation import Explanation
from gradcam_kit.types import Evidence, LayerCapture

_log = logging.getLogger("gradcam_kit")


def signed_maps(cam: Method, captured: Capture, layers: tuple[str, ...]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return the saliency of each layer, shallowest first, and the layers' importance if the method defines it."""
    saliency, importance = {}, []
    for name in sorted(layers, key=captured.order.index):
        layer = captured.layer(name, cam.needs, cam.batch_size, rule_of(cam))
        _check_masks(cam, captured, layer)
        saliency[name] = _checked(cam, layer, cam.saliencies(layer))
        share = cam.layer_importance(layer)
        if share is not None:
            importance.append(share)
        captured.checks.add(~torch.isfinite(finite_probe(saliency[name])), _non_finite(cam, name, saliency[name]))
    leading = 1 if captured.scores is None else captured.scores.ndim
    _warn_of_single_positions(saliency, captured.inputs.size, leading)
    return saliency, importance


def _check_masks(cam: Method, captured: Capture, layer: LayerCapture) -> None:
    """Raise ShapeError if a method lays its maps over the images, but maps and images have different axes."""
    positions, image = tuple(layer.activations.shape[2:]), tuple(layer.images.shape[1:])
    if captured.reshape is None or not cam.needs & (Evidence.RESCORE | Evidence.GUIDED):
        return
    if heatmap_size(positions, image) != image[1:]:
        raise ShapeError(
            f"{type(cam).__name__} lays the maps of layer {layer.layer!r} over the images, but the layer's "
            f"positions {positions} do not correspond to the axes {image[1:]} of the images; choose a "
            "method that does not mask the images, such as GradCAM"
        )


def _size_of_heatmaps(captured: Capture, saliency: dict[str, Tensor], leading: int) -> tuple[int, ...]:
    """Return the size of the heatmaps: that of the images, or of the largest layer if `reshape` gives other axes."""
    if captured.reshape is None:
        return captured.inputs.size
    image = captured.inputs.images.shape[1:]
    sizes = {name: heatmap_size(maps.shape[leading:], image) for name, maps in saliency.items()}
    if len(set(map(len, sizes.values()))) > 1:
        found = ", ".join(f"{name!r} {size}" for name, size in sizes.items())
        raise ShapeError(f"layers with different axes cannot be fused ({found}); explain the layers one by one")
    return tuple(map(max, zip(*sizes.values(), strict=True)))


def _warn_of_single_positions(saliency: dict[str, Tensor], size: tuple[int, ...], leading: int) -> None:
    """Warn about maps with a single position, whose heatmaps are constant and show nothing."""
    if max(size) > 1 and all(max(maps.shape[leading:]) == 1 for maps in saliency.values()):
        _log.warning(
            "each target layer (%s) has a single position, so its map is constant and shows nothing for images of %s; "
            "choose a layer before the pooling, or pass larger images",
            ", ".join(map(repr, saliency)),
            " x ".join(map(str, size)),
        )


def _checked(cam: Method, layer: LayerCapture, maps: Any) -> Tensor:
    """Return the maps of a method; raise ShapeError unless there is one map for each sample and target.

    Raises:
        ShapeError: the maps have another shape, or are not a tensor.
    """
    leading = tuple(layer.activations.shape[:1] if layer.scores is None else layer.scores.shape)
    size = tuple(layer.activations.shape[2:])
    axes = {len(size), layer.images.ndim - 2}  # some methods return maps at the size of the images
    if isinstance(maps, Tensor) and tuple(maps.shape[: len(leading)]) == leading and maps.ndim - len(leading) in axes:
        return maps
    found = f"shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else kind_of(maps)
    positions = ", ".join(("height", "width", "depth")[: len(size)] if len(size) > 1 else ("length",))
    raise ShapeError(
        f"{type(cam).__name__} returned {found} as the maps of layer {layer.layer!r}; expected "
        f"({', '.join(map(str, leading))}, {positions}): the channels summed, one map for each "
        f"{'sample and target' if len(leading) > 1 else 'sample'}"
    )


def _without_model(cam: Method) -> Method:
    """Return a copy of the method that does not keep the model alive, for the explanation to hold."""
    own = copy.copy(cam)
    own.model = weakref.proxy(cam.model)  # type: ignore[assignment]
    own.target_layers, own.chosen_layers = None, {}
    for name, value in vars(cam).items():
        if isinstance(value, Method):
            setattr(own, name, _without_model(value))
    return own


def assemble(
    cam: Method, captured: Capture, layers: tuple[str, ...], saliency: dict[str, Tensor], importance: list[Tensor]
) -> Explanation:
    """Make the explanation of the captured samples from the results of `signed_maps`."""
    leading = tuple(captured.scores.shape) if captured.scores is not None else (captured.inputs.n,)
    # Copy the maps, because the heatmaps may be computed after the caller has changed the signed maps in place.
    rows = [maps.flatten(0, len(leading) - 1).clone() for maps in saliency.values()]
    shares = [share.flatten() for share in importance]
    size = _size_of_heatmaps(captured, saliency, len(leading))
    last_stage = _without_model(cam)
    is_empty = _is_empty(cam, rows, shares, size).unflatten(0, leading)
    return Explanation(
        heatmaps=lambda: _heatmaps(last_stage, rows, shares, size).unflatten(0, leading),  # type: ignore[arg-type]
        saliency={name: saliency[name] for name in layers},
        targets=captured.classes,
        scores=captured.scores,
        output=captured.output,
        layers=layers,
        is_empty=is_empty,
        gradient_rule=rule_of(cam),
        empty_because=cause_of_empty(cam, captured, saliency, importance) if _are_all(is_empty) else "",
    )


@torch.inference_mode(False)
@torch.no_grad()
def _heatmaps(
    cam: Method, saliency: list[Float[Tensor, "r ..."]], importance: list[Tensor], size: tuple[int, ...]
) -> Float[Tensor, "r *t"]:
    """Run the last stage: ReLU, normalize and upsample each layer, fuse the layers, normalize.

    For the fusion "sum" the signed maps are upsampled and added first.
    """
    with torch.autocast(saliency[0].device.type, enabled=False):
        maps = []
        if cam.fusion == "sum" and len(saliency) > 1:
            total = cam.fuse([upsample(signed, size) for signed in saliency], importance)
            return normalize(total.clamp(min=0), cam.normalize).to(torch.float32)
        for depth, signed in enumerate(saliency):
            normalized = normalize(signed.clamp(min=0), cam.normalize)
            maps.append(upsample(cam.scale(normalized, depth, len(saliency)), size))
        return normalize(cam.fuse(maps, importance), cam.normalize).to(torch.float32)


def _are_all(empty: Bool[Tensor, "n *m"]) -> bool:
    """Whether all maps are empty; False on devices where the answer would need a synchronization."""
    return empty.device.type == "cpu" and bool(empty.numel()) and bool(empty.all())


def _is_empty(
    cam: Method, saliency: list[Float[Tensor, "r ..."]], importance: list[Tensor], size: tuple[int, ...]
) -> Bool[Tensor, " r"]:
    """Return which rows have no positive evidence after the fusion of the layers."""
    if cam.fusion == "sum" and len(saliency) > 1:
        return cam.fuse([upsample(maps, size) for maps in saliency], importance).flatten(1).amax(1) <= 0
    if cam.fusion == "product" and not importance:
        shared = fuse([upsample(normalize(maps.clamp(min=0), "max"), size) for maps in saliency], "product")
        return shared.flatten(1).amax(1) <= 0
    empty = torch.stack([maps.flatten(1).amax(1) <= 0 for maps in saliency])
    return (empty | (torch.stack(importance) <= 0) if importance else empty).all(0)


def _non_finite(cam: Method, layer: str, maps: Tensor) -> Callable[[int], Exception | None]:
    """Return a function that makes the error for a sample whose map is not finite."""

    def error(sample: int) -> Exception | None:
        if torch.isfinite(maps[sample]).all():
            return None  # a false alarm: only the sum of the values overflowed
        return NonFiniteError(
            f"{type(cam).__name__} gave NaN or infinite values at layer {layer!r} for image {sample} of the batch, "
            "although activations and gradients are finite; use float32, or choose another layer"
        )

    return error
