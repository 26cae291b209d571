"""Give hints about likely mistakes in a model's arguments: unknown arguments, or images on which the model fails."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradcam_kit.errors import InputError, did_you_mean, kind_of
from gradcam_kit.foreign import KEYWORDS, keyword_hints

_CHANNELS = (1, 3, 4)  # possible numbers of channels of an image
_MEANT = {
    **dict.fromkeys(("target", "category", "class_index", "class_id", "classes", "label"), "targets="),
    **dict.fromkeys(("input", "inputs", "image", "x", "img"), "the images as the first argument"),
    **dict.fromkeys(("target_layers", "layers"), "target_layers= when the CAM is made"),
    **dict.fromkeys(
        ("normalize", "fusion", "batch_size", "reshape"), "it when the CAM is made: GradCAM(model, {name}=...)"
    ),
}
"""The likely meaning of arguments that a model does not accept. Arguments of other libraries are in
`gradcam_kit.foreign`.
"""

_PRECISIONS = {torch.float16: "half", torch.bfloat16: "bfloat16", torch.float32: "float", torch.float64: "double"}
"""The name of each precision in PyTorch's errors, which is also the name of the module method that converts to it."""


def check_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise InputError for arguments that the model's `forward` does not accept, with a hint at the likely meaning."""
    if model._forward_pre_hooks_with_kwargs:
        return  # hooks may accept arguments that `forward` does not
    try:
        taken = inspect.signature(model.forward, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):  # compiled code has no signature
        return
    names = {one.name for one in taken if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}
    takes_any = any(one.kind is one.VAR_KEYWORD for one in taken)
    for name in (name for name in kwargs if name not in names):
        if name in KEYWORDS:  # an error even for a model that accepts any keyword and would silently ignore it
            said = keyword_hints([name])
        # A likely mistake. A model that accepts any keyword may use such a name itself, but hardly "target".
        elif name in _MEANT and (not takes_any or name == "target"):
            said = f"{name!r}; pass {_MEANT[name].format(name=name)}"
        elif takes_any:
            continue
        else:
            said = f"{name!r}{did_you_mean(name, ['targets', *names])}"
        raise InputError(
            f"{type(model).__name__}.forward, which gets all keyword arguments besides targets=, does not accept the "
            f"argument {said}"
        )
    places = sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in taken)
    if len(args) > places and not any(one.kind is one.VAR_POSITIONAL for one in taken):
        raise InputError(
            f"a sequence of {len(args)} is read as {len(args)} inputs of the model, but "
            f"{type(model).__name__}.forward takes {places}; {_as_a_batch(args)}"
        )


def nested_advice(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return advice for tensors inside lists or mappings, as detection models get them, or None if there are none."""
    inner = [value for value in (*args, *kwargs.values()) if isinstance(value, Mapping | list | tuple)]
    shapes = [tuple(leaf.shape) for leaf in tree_leaves(list(map(_plain_tree, inner))) if isinstance(leaf, Tensor)]
    if not shapes:
        return None
    return (
        f"the images are inside {', '.join(sorted({kind_of(value) for value in inner}))} (shapes "
        f"{', '.join(map(str, shapes[:3]))}), where they cannot be replaced by changed images; wrap the "
        "model in a module whose forward(images) takes one tensor (n, c, h, w) and makes these inputs from "
        "it, such as "
        "model([{'image': image} for image in images])"
    )


def _plain_tree(value: Any) -> Any:
    """Convert mappings of any class to dicts, so that `tree_leaves` finds their leaves."""
    if isinstance(value, Mapping):
        return {str(key): _plain_tree(entry) for key, entry in value.items()}
    return [_plain_tree(entry) for entry in value] if isinstance(value, list | tuple) else value


def _as_a_batch(args: Sequence[Any]) -> str:
    """Return advice on how to make one batch from the given sequence."""
    if (nested := nested_advice(args, {})) is not None:
        return nested
    if not all(isinstance(value, Tensor) for value in args):
        return (
            "make one tensor (n, c, h, w) from the pictures: torch.stack([transform(picture) for picture in pictures])"
        )
    if len({value.shape[1:] for value in args}) == 1 and args[0].ndim == 4:
        return "to pass all as one batch, use torch.cat(images)"
    return "to pass all as one batch, use torch.stack(images)" + (
        "" if len({value.shape for value in args}) == 1 else ", after resizing them to the same size"
    )


def advice(images: Tensor, args: tuple[Any, ...]) -> str | None:
    """Return a hint about the shape of images on which a model failed, if the shape looks wrong."""
    first, *others = images.shape
    if len(others) == 2 and first in _CHANNELS and min(others) > max(_CHANNELS):
        if sum(isinstance(value, Tensor) and value.ndim == 3 for value in args) > 1:
            return f"A sequence is read as several inputs of the model: {_as_a_batch(args)}"
        return "If this is a single image (c, h, w), add a batch axis: images[None]"
    if len(others) == 3 and others[-1] in _CHANNELS and others[0] not in _CHANNELS:
        return "If the channels are last (n, h, w, c), move them: images.movedim(-1, 1)"
    return None


def precision_advice(images: Tensor, model: nn.Module, error: Exception) -> str | None:
    """Return a hint if a model failed because images and parameters differ in precision, else None.

    Many models convert their inputs themselves, so the hint is given only if the error names both precisions.
    """
    own = next((one.dtype for one in model.parameters() if one.dtype in _PRECISIONS), None)
    if own is None or own == images.dtype or images.dtype not in _PRECISIONS:
        return None
    words = re.findall("[a-z0-9]+", str(error).lower().replace("tensor", " "))
    if not {_PRECISIONS[own], _PRECISIONS[images.dtype]} <= {*words}:
        return None
    return (
        f"The images are {images.dtype} and the model is {own}; convert one of them: images.to({own}), or "
        f"model.{_PRECISIONS[images.dtype]}()"
    )
