"""From what a pass captured to an explanation: signed maps, then ReLU, normalization, upsampling and fusion."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradcam_kit.capture import Capture
from gradcam_kit.errors import NonFiniteError, ShapeError, kind_of
from gradcam_kit.functional import Fusion, finite, fuse, normalize, upsample
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.methods.engine.explanation import Explanation
from gradcam_kit.types import LayerCapture

_log = logging.getLogger("gradcam_kit")


def signed_maps(cam: BaseCAM, captured: Capture, layers: tuple[str, ...]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The saliency of each layer, shallowest first, and the layers' importance where the method weighs them."""
    saliency, importance = {}, []
    for name in sorted(layers, key=captured.order.index):
        layer = captured.layer(name, cam.needs, cam.batch_size)
        saliency[name] = _checked(cam, layer, cam.saliencies(layer))
        share = cam.importance(layer)
        if share is not None:
            importance.append(share)
        captured.checks.add(~torch.isfinite(finite(saliency[name])), _non_finite(cam, name, saliency[name]))
    _warn_of_single_positions(saliency, captured.inputs.size)
    return saliency, importance


def _warn_of_single_positions(saliency: dict[str, Tensor], size: tuple[int, ...]) -> None:
    """Maps without positions are right, and useless: the heatmaps are constant."""
    if max(size) > 1 and all(max(maps.shape[-len(size) :]) == 1 for maps in saliency.values()):
        _log.warning(
            "layer %s has a single position, so it cannot show where anything is in images of %s; choose a layer in "
            "front of the pooling, or give larger images",
            ", ".join(map(repr, saliency)),
            " x ".join(map(str, size)),
        )


def _checked(cam: BaseCAM, layer: LayerCapture, maps: Any) -> Tensor:
    """The maps that a method gave, if they are maps at all.

    Raises:
        ShapeError: not one map for each sample and target.
    """
    leading = tuple(layer.activations.shape[:1] if layer.scores is None else layer.scores.shape)
    size = tuple(layer.images.shape[2:])
    if isinstance(maps, Tensor) and tuple(maps.shape[: len(leading)]) == leading and maps.ndim == len(leading + size):
        return maps
    found = f"shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else kind_of(maps)
    positions = ", ".join(("height", "width", "depth")[: len(size)] if len(size) > 1 else ("length",))
    raise ShapeError(
        f"{type(cam).__name__} returned {found} as the maps of layer {layer.layer!r}; expected "
        f"({', '.join(map(str, leading))}, {positions}): the channels summed, one map for each "
        f"{'sample and target' if len(leading) > 1 else 'sample'}"
    )


def _without_model(cam: BaseCAM) -> BaseCAM:
    """The method as it is now; an explanation that holds it does not keep the model alive."""
    own = copy.copy(cam)
    own.model = weakref.proxy(cam.model)  # type: ignore[assignment]
    own.target_layers, own.chosen_layers = None, {}
    for name, value in vars(cam).items():
        if isinstance(value, BaseCAM):
            setattr(own, name, _without_model(value))
    return own


def assemble(
    cam: BaseCAM, captured: Capture, layers: tuple[str, ...], saliency: dict[str, Tensor], importance: list[Tensor]
) -> Explanation:
    """The explanation of the captured samples by these signed maps, given as `signed_maps` does."""
    leading = tuple(captured.scores.shape) if captured.scores is not None else (captured.inputs.n,)
    # Copies, because heatmaps may be computed after their reader has changed the signed maps in place.
    rows = [maps.flatten(0, len(leading) - 1).clone() for maps in saliency.values()]
    shares = [share.flatten() for share in importance]
    size = captured.inputs.size
    last_stage = _without_model(cam)
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
