"""Checks of the inputs of metrics, and flags for maps that cannot be measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from gradcam_kit.capture import Rescoring
from gradcam_kit.errors import InputError, OptionError, ShapeError, kind_of
from gradcam_kit.functional import at_least_float32
from gradcam_kit.metrics.result import Status
from gradcam_kit.similarity import broken, constant
from gradcam_kit.targets.values import for_class_names, kinds_in

# whether a `MetricInput` has already checked ranges and images
_is_checked: ContextVar[bool] = ContextVar("_is_checked", default=False)
_ROUNDING = 1e-6  # how far rounding errors may take a probability outside [0, 1]


@contextmanager
def case_checked() -> Iterator[None]:
    """Skip, inside this block, the checks that heatmaps lie in [0, 1] and that images are those of `rescore`."""
    token = _is_checked.set(True)
    try:
        yield
    finally:
        _is_checked.reset(token)


def check_heatmaps(heatmaps: Any, images: Tensor, *, within: bool = True) -> None:
    """Raise an error unless there is one heatmap of the image's size for each image, with values in [0, 1].

    Args:
        heatmaps: expected `(n, *t)`.
        images: expected `(n, c, *t)`.
        within: whether to check the range. NaN and infinity raise no error; maps that contain them are flagged.
    """
    _check_tensor("heatmaps", heatmaps)
    if not heatmaps.is_floating_point():
        raise InputError(f"heatmaps are {heatmaps.dtype}; expected floating-point values in [0, 1]")
    expected = (images.shape[0], *images.shape[2:])
    if tuple(heatmaps.shape) != expected:
        if one_less := _without_an_axis("heatmaps", heatmaps, expected):
            hint = f"; pass {one_less}"
        else:
            hint = _channels_elsewhere(heatmaps, images)
            if not hint and heatmaps.ndim == len(expected) + 1:
                hint = "; fold the axis of several targets into the batch"
        raise ShapeError(
            f"heatmaps have shape {tuple(heatmaps.shape)}; images of shape {tuple(images.shape)} need {expected}{hint}"
        )
    if not within or _is_checked.get():
        return
    outside = ((heatmaps < 0) | (heatmaps > 1)) & heatmaps.isfinite()
    if bool(outside.any()):
        low, high = (float(extreme) for extreme in heatmaps[heatmaps.isfinite()].aminmax())
        raise OptionError(f"heatmaps range from {low:.8g} to {high:.8g}; expected [0, 1] as the methods return them")


def _channels_elsewhere(heatmaps: Tensor, images: Tensor) -> str:
    """Return a hint for videos `(n, t, c, h, w)` and spectrograms `(n, time, frequency)`, which some models take."""
    n, *size = images.shape
    if images.ndim == 3 and tuple(heatmaps.shape) == (n, *size):
        return "; metrics take (n, c, *positions): pass images[:, None] or rescore.inputs.images"
    if images.ndim == 5 and tuple(heatmaps.shape) == (n, size[0], *size[2:]):
        return "; metrics take (n, c, *positions): pass images.movedim(2, 1) or rescore.inputs.images"
    return ""


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"{name} is {kind_of(value)}; expected a tensor, such as {_tensor_from(name, value)}")


def _tensor_from(name: str, value: object) -> str:
    """Return an expression that makes the tensor from the value that was given instead."""
    if name == "heatmaps" and callable(value):
        return "cam(images)"
    if name == "heatmaps" and hasattr(value, "heatmaps"):
        return "explanation.heatmaps"
    return f"torch.as_tensor({name})"


def _without_an_axis(name: str, given: Tensor, expected: tuple[int, ...]) -> str:
    """Return the hint `name[:, 0]` if the only fault of a shape is an extra axis of length 1; else an empty string."""
    shape = tuple(given.shape)
    for place, taken in ((1, "[:, 0]"), (len(shape) - 1, "[..., 0]"), (0, "[0]")):
        if shape[place : place + 1] == (1,) and shape[:place] + shape[place + 1 :] == expected:
            return name + taken
    return ""


def check_masks(masks: Any, heatmaps: Any, name: str = "masks") -> None:
    """Raise an error if the masks are not boolean or differ from the heatmaps in shape."""
    _check_tensor(name, masks)
    _check_tensor("heatmaps", heatmaps)
    if masks.shape != heatmaps.shape:
        variable = name.partition(" ")[0]  # "ignored pixels" come from the variable `ignored`
        one_less = _without_an_axis(variable, masks, tuple(heatmaps.shape))
        one_less = one_less or _without_an_axis("heatmaps", heatmaps, tuple(masks.shape))
        hint = f": pass {one_less}" if one_less else ""
        if masks.ndim == heatmaps.ndim and len(masks) == len(heatmaps):
            hint = ". Resize the masks yourself, because the right interpolation depends on their values"
        raise ShapeError(
            f"{name} have shape {tuple(masks.shape)}, heatmaps {tuple(heatmaps.shape)}; expected the same{hint}"
        )
    if masks.dtype != torch.bool:
        raise InputError(f"{name} are {masks.dtype}; expected bool (masks > 0.5, masks == label, ...)")


def check_boxes(boxes: Any) -> None:
    """Raise an error if boxes are not `(n, b, 4)`."""
    _check_tensor("boxes", boxes)
    if boxes.ndim != 3 or boxes.shape[2] != 4:
        hint = "; one box for each image is boxes[:, None]" if boxes.ndim == 2 else ""
        raise ShapeError(
            f"boxes have shape {tuple(boxes.shape)}; expected (n, b, 4): b boxes (x0, y0, x1, y1) of each image{hint}"
        )


def check_numbers(name: str, numbers: Any, n: int, count: int | None = None) -> None:
    """Raise an error unless there is one integer for each image, in `range(count)` if a count is given."""
    _check_tensor(name, numbers)
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise InputError(f"{name} are {numbers.dtype}; expected integers, one number per image")
    if tuple(numbers.shape) != (n,):
        raise ShapeError(f"{name} have shape {tuple(numbers.shape)}; expected ({n},): one number per image")
    if count is None:
        return
    numbers = numbers.long()  # comparisons are not implemented for all unsigned types
    if bool(((numbers < 0) | (numbers >= count)).any()):
        low, high = (int(extreme) for extreme in numbers.aminmax())
        raise OptionError(f"{name} go from {low} to {high}; expected numbers from 0 to {count - 1}")


def read_whole_numbers(name: str, numbers: Any, n: int, count: int | None = None) -> Integer[Tensor, " n"]:
    """Return one integer for each image, from any container. Raises the errors of `check_numbers`."""
    if isinstance(numbers, Tensor):
        found = numbers
    else:
        try:
            found = torch.as_tensor(np.array(numbers), device="cpu")
        except (TypeError, ValueError) as error:
            hint = for_class_names(name, numbers)
            raise InputError(f"{name} is {kinds_in(numbers)}; expected integers, one number per image{hint}") from error
        found = found if found.numel() else found.long()  # an empty list becomes floating-point numbers
    check_numbers(name, found, n, count)
    return found


def check_rows(name: str, rows: object) -> None:
    """Raise an error if `rescore` or `predicts` is a model, or a `rescoring` block that was not entered."""
    # Models and blocks are callable too, but a model would take the index for one of its inputs.
    if isinstance(rows, nn.Module | ContextDecorator) or not callable(rows):
        raise InputError(
            f"{name} is {kind_of(rows)}; expected a function (rows, index) -> (m,) that scores changed images, such as "
            f"{'rescore.predicts' if name == 'predicts' else 'rescore'} from `with "
            "gradcam_kit.capture.rescoring(model, images) as rescore:`"
        )


def check_same_images(images: Tensor, rescore: Any, name: str = "rescore") -> None:
    """Raise an error unless the images are those whose classes `rescore` has fixed."""
    if _is_checked.get() or rescore is None:
        return
    check_rows(name, rescore)
    if not isinstance(rescore, Rescoring):
        return
    scored, raw = rescore.inputs.images, rescore.inputs.raw
    if images is scored:
        return
    if rescore.inputs.channels != 1 and images.shape == raw.shape and (images is raw or _is_same(images, raw)):
        raise ShapeError(
            f"images of shape {tuple(images.shape)} have the layout of the model, with the channels at axis "
            f"{rescore.inputs.channels}; metrics take (n, c, *positions): pass rescore.inputs.images"
        )
    if images.shape != scored.shape:
        raise ShapeError(
            f"rescore was made for images of shape {tuple(scored.shape)}, but the images have shape "
            f"{tuple(images.shape)}; make one for these images: rescoring(model, images, classes)"
        )
    if not _is_same(images, scored):
        raise InputError(
            "rescore was made for other images, so its classes do not belong to these images; make one for these "
            "images: rescoring(model, images, classes)"
        )


def _is_same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def improbable(scores: Float[Tensor, "n k"]) -> Bool[Tensor, " n"]:
    """Return which images have scores that are not probabilities, so that shares of these scores are meaningless."""
    return ((scores < -_ROUNDING) | (scores > 1 + _ROUNDING)).any(1)


def check_scores(scores: Tensor, rows: int) -> Tensor:
    """Return the scores as floats; raise an error unless there is one per row."""
    if tuple(scores.shape) != (rows,):
        raise ShapeError(
            f"rescore returned scores of shape {tuple(scores.shape)} for {rows} rows; expected ({rows},). "
            "For (n, m) targets, repeat each image m times, so that each row has one target"
        )
    return at_least_float32(scores)


def degenerate(maps: Float[Tensor, "n *t"]) -> dict[Status, Bool[Tensor, " n"]]:
    """Return which maps are constant or not finite, as a flag by status."""
    return {Status.DEGENERATE_MAP: broken(maps) | constant(maps)}


def usable(maps: Float[Tensor, "n *t"]) -> Float[Tensor, "n *t"]:
    """Return the maps in at least float32, with zeros for non-finite maps, so that the other maps can be measured."""
    return at_least_float32(maps).where(~broken(maps).reshape(-1, *(1 for _ in maps.shape[1:])), 0)
