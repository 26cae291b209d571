"""Settle the layout of an output by its shape, or by the origin of its values if the shape is ambiguous."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from gradcam_kit.capture.layouts import ChannelsFirst, Layout, fits, has_aspect, infer_layout
from gradcam_kit.capture.provenance.evidence import Evidence
from gradcam_kit.errors import ShapeError


class InDoubtError(Exception):
    """The shape of an output is ambiguous, and the origin of its values has not been traced yet."""


def is_in_doubt(shape: Sequence[int], size: Sequence[int], module: nn.Module) -> bool:
    """Whether the layout of an output of this shape is ambiguous for images with positions `size`.

    Tokens may belong to a text, to queries or to anchors. Outputs whose aspect ratio differs from that of the images
    may not be maps at all. Channels may be on the first or the last axis if the positions fit the images in both
    cases, unless the module consists of convolutions and their normalizations.
    """
    if len(shape) == 3 and len(size) > 1:
        return True
    if len(shape) != len(size) + 2:
        return False
    first, last = tuple(shape[2:]), tuple(shape[1:-1])
    if len(size) > 1 and not has_aspect(first[-2:], size[-2:]):
        return True
    if _has_channels_first(module, len(size)):
        return False
    if len(size) == 1:
        return first == last or last == tuple(size)
    return fits(first, size) and fits(last, size)


def settle_layout(
    shape: Sequence[int],
    size: Sequence[int],
    model: nn.Module,
    layer: str,
    module: nn.Module,
    n: int,
    evidence: Evidence | None,
) -> Layout:
    """Return the layout of a layer's output for n images.

    Raises:
        InDoubtError: the shape is ambiguous, and there is no evidence yet.
        ShapeError: the output does not have positions of the images; the message says why.
    """
    doubt = is_in_doubt(shape, size, module)
    if doubt and evidence is None:
        raise InDoubtError(layer)
    verdict = evidence.of(module, shape, n) if doubt and evidence else None
    if verdict is None:
        return layout_by_shape(shape, size, model, layer, module)
    if verdict.layout is None:
        raise refused(shape, layer, verdict.reason)
    return verdict.layout


def layout_by_shape(
    shape: Sequence[int], size: Sequence[int], model: nn.Module, layer: str, module: nn.Module
) -> Layout:
    """Return the layout that follows from the sizes of the axes and from the kernel of the module.

    Raises:
        ShapeError: the output has no positions, or tokens that fit no grid or several grids.
    """
    if len(shape) == len(size) + 2 and _has_channels_first(module, len(size)):
        return ChannelsFirst()
    return infer_layout(shape, size, model, layer)


def refused(shape: Sequence[int], layer: str, reason: str) -> ShapeError:
    """Return the error for an output without positions of the images."""
    return ShapeError(
        f"layer {layer!r} returned shape {tuple(shape)}, but {reason}; choose a layer whose positions are those of "
        "the images, or pass reshape=, a callable from the layer's output to (n, k, *positions)"
    )


def _has_channels_first(module: nn.Module, axes: int) -> bool:
    """Whether all parameters inside a module are kernels of convolutions, or belong to their normalizations."""
    owners = [one for one in module.modules() if one._parameters or hasattr(one, "running_mean")]
    return bool(owners) and all(
        hasattr(one, "running_mean") or getattr(getattr(one, "weight", None), "ndim", 0) == axes + 2 for one in owners
    )
