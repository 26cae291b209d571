"""Find the frames of a clip in a layer's output: folded into the batch, in one call each, or along a separate axis.

Shapes and gradients decide, not names: if a shape is ambiguous, the gradient of a row shows from which frame the row
comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.layouts import Layout, infer_layout
from gradcam_kit.capture.model.inputs import Inputs, Runner
from gradcam_kit.capture.model.state import untouched
from gradcam_kit.errors import CaptureError, InputError, ShapeError, kind_of


class Folded(nn.Module):
    """A wrapper that calls a model of single frames, `(n * t, c, h, w)`, with clips `(n, t, c, h, w)`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, clip: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Fold the frames into the batch."""
        return self.model(clip.flatten(0, 1), *args, **kwargs)


@dataclass(frozen=True)
class FrameLayout:
    """How to read the maps of frames from a layer's output.

    Attributes:
        calls: number of calls of the layer for a batch; more than one if it runs once per frame.
        reshape: function from one call's output to `(n, k, t, *s)`, or to `(n, k, *s)` if there is one call per frame.
    """

    calls: int
    reshape: Callable[[Any], Tensor]


def frame_layout(model: nn.Module, inputs: Inputs, layer: nn.Module, name: str) -> FrameLayout:
    """Run the model once on at most two clips, and find where the layer's output holds their frames.

    Args:
        model: the unwrapped model.
        inputs: clips whose `images` are `(n, c, t, h, w)`.
        layer: the layer whose output is read.
        name: name of the layer, for messages.

    Raises:
        CaptureError: the layer did not run.
        InputError: the layer returned no floating-point tensor.
        ShapeError: the output cannot be read as frames, or can be read in several ways.
    """
    images = inputs.images[:2]
    n, _, t, *size = images.shape
    outputs: list[Tensor] = []

    def leave(_: nn.Module, args: Any, output: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if not tensors:
            raise InputError(
                f"layer {name!r} returned {kind_of(output)}, which is or contains no floating-point tensor; choose "
                "another layer"
            )
        outputs.append(tensors[0] + 0)  # a copy that later in-place operations do not change

    device = images.device
    with untouched(model, device), holding_hooks() as attach, torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        attach.after(layer, leave)
        Runner.of(model, device)(inputs.with_images(leaf, torch.arange(n, device=device)))
        if not outputs:
            raise CaptureError(f"layer {name!r} did not run; choose a layer that the model calls")
        shapes = [tuple(own.shape) for own in outputs]
        shape = shapes[0]
        if len(outputs) == t > 1 and all(own == shape for own in shapes) and shape[0] == n:
            return FrameLayout(t, _Maps(_layout(shape, size, model, name)))
        if len(outputs) == 1 and shape[0] == n * t and len(shape) < 5:
            first = n > 1 and t > 1 and _is_time_first(outputs[0], leaf, name)
            return FrameLayout(1, _Rows(_layout(shape, size, model, name), inputs.n, t, first))
        if len(outputs) == 1 and shape[0] == n and len(shape) in (3, 5):
            if len(shape) == 5 and shape[1] == t and _is_frame(outputs[0], leaf, name):
                return FrameLayout(1, _Moved())
            return FrameLayout(1, _Maps(_layout(shape, (t, *size), model, name)))
    raise ShapeError(
        f"layer {name!r} ran {len(outputs)} time(s) and returned {', '.join(map(str, dict.fromkeys(shapes)))} for {n} "
        f"clip(s) of {t} frames; expected {n * t} rows in one call, one call of {n} row(s) for each frame, or "
        f"({n}, k, t, h, w). Choose a layer that still has the positions of the frames"
    )


def _layout(shape: tuple[int, ...], size: Sequence[int], model: nn.Module, name: str) -> Layout:
    try:
        return infer_layout(shape, size, model, name)
    except ShapeError as error:
        raise ShapeError(
            f"layer {name!r} returned {shape}, which has no positions of frames of {'x'.join(map(str, size[-2:]))} "
            "or can be read in several ways; choose the last spatial layer of the CNN"
        ) from error


@dataclass(frozen=True)
class _Maps:
    layout: Layout

    def __call__(self, output: Any) -> Tensor:
        return self.layout.to_maps(_tensor(output))


@dataclass(frozen=True)
class _Rows:
    """Reads maps of frames from `(n * t, ...)`, clip after clip or frame after frame."""

    layout: Layout
    n: int
    t: int
    time_first: bool

    def __call__(self, output: Any) -> Float[Tensor, "n k t *s"]:
        maps = self.layout.to_maps(_tensor(output))
        if self.time_first:
            first: Tensor = maps.unflatten(0, (self.t, -1))
            return first.movedim(0, 2)
        clips: Tensor = maps.unflatten(0, (-1, self.t))
        return clips.transpose(1, 2)


@dataclass(frozen=True)
class _Moved:
    """Reads maps of frames from `(n, t, k, h, w)`."""

    def __call__(self, output: Any) -> Float[Tensor, "n k t *s"]:
        return _tensor(output).transpose(1, 2)


def _tensor(output: Any) -> Tensor:
    found: Tensor = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return found


def _is_time_first(output: Tensor, clips: Float[Tensor, "n c t h w"], name: str) -> bool:
    """Whether rows go frame after frame, so that the second row is from the second clip, and not clip after clip."""
    n, t = clips.shape[0], clips.shape[2]
    per_clip = [False, False]
    for row in range(len(output)):
        by_clip, by_frame = row // t, row % n
        if by_clip == by_frame:
            continue
        per_clip = _reached(output[row], clips).flatten(1).any(1).tolist()
        if sum(per_clip) == 1:  # a row of zeros depends on no clip, so try the next one
            return bool(per_clip[by_frame])
        if all(per_clip):
            break
    raise ShapeError(
        f"the {len(output)} rows of layer {name!r} can be read as clip after clip or as frame after frame, "
        f"and they depend on {'both clips' if all(per_clip) else 'neither clip'}; pass one clip at a time, "
        "or choose another layer"
    )


def _is_frame(output: Tensor, clips: Float[Tensor, "n c t h w"], name: str) -> bool:
    """Whether the second axis of `(n, t, ...)` is time, so that its second entry comes from the second frame alone."""
    reached = _reached(output[:, 1], clips).flatten(3).any(-1).any(1).any(0).tolist()
    return [place for place, own in enumerate(reached) if own] == [1]


def _reached(part: Tensor, clips: Tensor) -> Tensor:
    """Return which values of the clips influence a part of an output, judged by gradients with random weights."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(part.shape, generator=generator, dtype=torch.float64).add(0.5).to(part)
    (gradient,) = torch.autograd.grad((part * weights).sum(), clips, retain_graph=True, allow_unused=True)
    return torch.zeros_like(clips, dtype=torch.bool) if gradient is None else gradient != 0
