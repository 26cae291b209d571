"""Class activation maps of clips: a map of each frame, and the weight of each frame.

The map of a frame is computed from its own activations and gradients, as if each frame were a separate image in
Grad-CAM (Selvaraju et al., ICCV 2017, https://arxiv.org/abs/1610.02391).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradcam_kit.capture import Folded, check_model, find_layers, frame_layout, read_inputs
from gradcam_kit.errors import InputError, OptionError, ShapeError, kind_of
from gradcam_kit.functional import normalize, upsample
from gradcam_kit.methods.base import METHODS, BaseCAM
from gradcam_kit.methods.engine.engine import capture_for
from gradcam_kit.options import one_of, positive_int
from gradcam_kit.types import Evidence, LayerCapture


@dataclass(frozen=True, eq=False)
class TemporalExplanation:
    """The result of `temporal_cam`: where and when the model looked.

    With `(n, m)` targets, every tensor has an axis m after n.

    Attributes:
        heatmaps: float32 at the size of the frames, in [0, 1] unless `normalize="none"`. They are normalized over the
            entire clip, so that frames can be compared.
        weights: the share of the positive evidence that lies in each frame; sums to 1, or to 0 without any evidence.
        saliency: the signed maps at the layer's resolution.
        targets: class indices, or None for a callable.
        scores: the explained scores.
        output: the model's output.
        layer: name of the layer.
        is_empty: whether a clip has no positive evidence.
    """

    heatmaps: Float[Tensor, "n *m t h w"]
    weights: Float[Tensor, "n *m t"]
    saliency: Float[Tensor, "n *m s y x"]
    targets: Int[Tensor, "n *m"] | None
    scores: Float[Tensor, "n *m"] | None
    output: Any
    layer: str
    is_empty: Bool[Tensor, "n *m"]


@torch.inference_mode(False)
def temporal_cam(
    model: Any,
    clip: Any,
    layer: Any,
    targets: Any = None,
    *,
    method: str = "grad-cam",
    normalize: str = "minmax",
    frames: int | None = None,
    **forward_kwargs: Any,
) -> TemporalExplanation:
    """Explain a model of clips: a CNN with a recurrent layer or attention over its frames, or a video network.

    The result shows where the model looked in each frame, and which frames mattered. The layer may get the frames in
    its batch axis (clip by clip, or time by time), in one call each, or along a separate axis; the case is inferred
    from shapes and gradients. On CUDA, cuDNN is switched off for recurrent layers, which it cannot differentiate in
    eval mode.

    Args:
        model: any model of clips.
        clip: `(n, t, c, h, w)` or `(n, c, t, h, w)`, whichever the model accepts, or a tuple or mapping of inputs. With
            `frames`, `(n * t, c, h, w)`, clip after clip.
        layer: a module whose output has spatial positions, such as the last convolution of the CNN, or its dotted name.
        targets: the targets, as in a call of a CAM method.
        method: a method that needs only activations and gradients: "grad-cam", "hires-cam", "layer-cam", ...
        normalize: "minmax", "max" or "none", over the entire clip.
        frames: number of frames of a clip, for models that expect the frames in the batch axis.
        forward_kwargs: keyword arguments passed on to the model.

    Raises:
        LayerNotFoundError: a layer that the model does not have.
        UnknownNameError: a method that does not exist.
        OptionError: a method that needs more than activations and gradients, or an invalid option.
        ShapeError: a clip or a layer output without a frame axis, or with two axes that could be it.
        CaptureError: a layer on which the score does not depend.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from gradcam_kit import temporal_cam
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv, self.gru, self.head = nn.Conv2d(3, 8, 3), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 4)
        ...     def forward(self, clip):  # (n, t, 3, h, w)
        ...         features = self.conv(clip.flatten(0, 1)).relu().mean((2, 3))
        ...         return self.head(self.gru(features.unflatten(0, clip.shape[:2]))[0][:, -1])
        >>> explanation = temporal_cam(Net(), torch.randn(2, 5, 3, 16, 16), "conv")
        >>> explanation.heatmaps.shape, explanation.weights.shape
        (torch.Size([2, 5, 16, 16]), torch.Size([2, 5]))
    """
    own = check_model(model)
    one_of("normalize", normalize, ("minmax", "max", "none"))
    cam_type = METHODS[method]
    if cam_type.needs != Evidence.GRADIENTS:
        able = ", ".join(name for name, one in METHODS.items() if one.needs == Evidence.GRADIENTS)
        raise OptionError(
            f"method is {method!r}, which needs more than activations and gradients of the layer; expected one "
            f"of {able}"
        )
    found = find_layers(own, layer, model)
    if len(found) > 1:
        raise InputError(f"layer names {len(found)} layers ({', '.join(found)}); expected one")
    ((name, module),) = found.items()
    called, prefix = own, ""
    if frames is not None:
        clip = _unfolded(clip, positive_int("frames", frames))
        called, prefix = Folded(own), "model."
    inputs = read_inputs(clip, forward_kwargs, called)
    if inputs.images.ndim != 5:
        raise ShapeError(
            f"clip has shape {tuple(inputs.raw.shape)}; expected (n, t, c, h, w) or (n, c, t, h, w), or pass "
            "frames= for a model that expects the frames in its batch axis"
        )
    if inputs.n == 0:
        raise ShapeError(f"clip has shape {tuple(inputs.raw.shape)}; expected at least one clip")
    layout = frame_layout(called, inputs, module, name)
    names = [f"{prefix}{name}"] if layout.calls == 1 else [f"{prefix}{name}#{i + 1}" for i in range(layout.calls)]
    cam = cam_type(called, names, reshape=layout.reshape)
    with capture_for([cam], inputs, targets) as (captured, (layers,)):
        seen = [captured.layer(one, cam.needs, cam.batch_size) for one in layers]
        if layout.calls > 1:
            maps = torch.stack([_saliency(cam, one) for one in seen], -3)
        else:
            maps = _saliency(cam, _folded(seen[0]))
            maps = maps.unflatten(0, (inputs.n, -1)).movedim(1, -3)
        targets_of, scores = captured.classes, seen[0].scores
        output = captured.output
    return _explained(maps, inputs.size, normalize, targets_of, scores, output, name)


def _saliency(cam: BaseCAM, layer: LayerCapture) -> Float[Tensor, "n *m y x"]:
    """Return the signed maps of the capture, one row for each sample. Several targets have a separate axis."""
    return cam.saliencies(layer)


def _folded(layer: LayerCapture) -> LayerCapture:
    """Return the capture with each frame as a row of the batch."""
    t = layer.activations.shape[2]
    gradients, scores = layer.gradients, layer.scores
    # a stride over time leaves fewer frames than the clip has, so each frame gets the image nearest to it in time
    nearest = torch.arange(t, device=layer.images.device) * layer.images.shape[2] // t
    return replace(
        layer,
        activations=layer.activations.transpose(1, 2).flatten(0, 1),
        gradients=None if gradients is None else gradients.movedim(-3, 1).flatten(0, 1),
        scores=None if scores is None else scores.repeat_interleave(t, dim=0),
        images=layer.images[:, :, nearest].transpose(1, 2).flatten(0, 1),
    )


def _explained(
    maps: Float[Tensor, "n *m s y x"],
    size: tuple[int, ...],
    method: Any,
    targets: Tensor | None,
    scores: Tensor | None,
    output: Any,
    layer: str,
) -> TemporalExplanation:
    leading = maps.shape[:-3]
    flat = maps.reshape(-1, *maps.shape[-3:])
    positive = upsample(flat.clamp(min=0), size)
    strength = (flat.clamp(min=0) if flat.shape[1] == size[0] else positive).sum((2, 3))
    total = strength.sum(1, keepdim=True)
    weights = strength / total.where(total > 0, 1)
    heatmaps = normalize(positive, method)
    return TemporalExplanation(
        heatmaps=heatmaps.float().reshape(*leading, *size),
        weights=weights.float().reshape(*leading, size[0]),
        saliency=maps,
        targets=targets,
        scores=scores,
        output=output,
        layer=layer,
        is_empty=(total[:, 0] <= 0).reshape(leading),
    )


def _unfolded(clip: Any, frames: int) -> Any:
    """Split the first axis of `(n * t, c, h, w)` into clips and frames."""
    if isinstance(clip, tuple | list):
        return (_unfolded(clip[0], frames), *clip[1:]) if clip else clip
    if not isinstance(clip, Tensor):
        raise InputError(
            f"clip is {kind_of(clip)}; frames= expects a tensor (n * t, c, h, w), or a tuple that starts with one"
        )
    if clip.ndim != 4 or clip.shape[0] % frames:
        raise ShapeError(f"clip has shape {tuple(clip.shape)} and frames is {frames}; expected (n * frames, c, h, w)")
    return clip.unflatten(0, (-1, frames))
