"""Read a model's output: find the class scores and the predicted classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gradcam_kit.errors import ShapeError, TargetError, kind_of


def read_logits(output: Any) -> Float[Tensor, "n classes"]:
    """Find the class scores in a model's output.

    The scores are the tensor itself, the `logits` of a mapping or a Hugging Face output, or else the only
    floating-point tensor `(n, classes)` in a mapping or tuple, which may also contain maps `(n, c, h, w)`. An output
    with one value per sample, `(n,)`, is read as one class.

    Raises:
        TargetError: no tensor, or several tensors, could be the scores; the message lists the shapes of the tensors.
        ShapeError: the scores are not `(n, classes)`.
    """
    found = find_logits(output)
    if found.ndim < 2:
        return found.reshape(-1, 1)  # a scalar is a single squeezed sample
    if found.ndim != 2:
        raise ShapeError(
            f"the model's output has shape {tuple(found.shape)}; class targets need (n, classes). "
            "For dense predictions pass targets=SegmentationTarget(...) or a callable output -> scores (n,)"
        )
    return found


def find_logits(output: Any) -> Tensor:
    """Return the tensor of a model's output that `read_logits` reads, unchanged."""
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    leaves = tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    floating = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if len(floating) == 1:
        return floating[0]
    if (rows := _beside_maps(floating)) is not None:
        return rows
    found = ", ".join(str(tuple(tensor.shape)) for tensor in floating) or "none"
    raise TargetError(
        f"the model's output is {kind_of(output)} with {len(floating)} floating-point tensors ({found}); "
        "class targets need exactly one. Pass targets=callable, which gets the unchanged output and "
        f"returns scores (n,), such as {_picked(output)} or those of gradcam_kit.targets; for a run wrap "
        "the model so that it returns one tensor"
    )


def _beside_maps(floating: Sequence[Tensor]) -> Tensor | None:
    """Return the only tensor `(n, classes)` next to maps `(n, c, h, w)`, as in models that return (mask, label).

    Return None if the tensor may be a summary of the maps, because its width equals a size of their axes.
    """
    rows = [tensor for tensor in floating if tensor.ndim == 2]
    maps = [tensor for tensor in floating if tensor.ndim == 4]
    if len(rows) != 1 or len(rows) + len(maps) != len(floating):
        return None
    n, width = rows[0].shape
    return rows[0] if all(one.shape[0] == n and width not in one.shape[1:] for one in maps) else None


def _picked(output: Any) -> str:
    """Return code that takes one score per sample from an output: a column, or its largest value over positions.

    If a tensor has three axes, the shorter of the last two is taken as the classes, because detectors have more anchors
    than classes.
    """
    entries = (
        output.items() if isinstance(output, Mapping) else enumerate(output) if isinstance(output, tuple | list) else ()
    )
    tensors = [(key, one) for key, one in entries if isinstance(one, Tensor) and one.is_floating_point()]
    for key, value in sorted(tensors, key=lambda entry: entry[1].ndim != 2):
        if not 2 <= value.ndim <= 5 or 0 in value.shape:
            continue
        axis = 2 if value.ndim == 3 and value.shape[2] < value.shape[1] else 1
        column = min(7, value.shape[axis] - 1)
        taken = f"output[{key!r}][:, {column}]" if axis == 1 else f"output[{key!r}][..., {column}]"
        largest = {2: "", 3: ".amax(1)", 4: ".amax((1, 2))", 5: ".amax((1, 2, 3))"}[value.ndim]
        return f"lambda output: {taken}{largest}"
    return "a lambda that picks one number of each sample"


def predicted_classes(output: Any) -> Int[Tensor, " n"]:
    """Return the class with the largest logit for each sample, which is 0 for a model with one output."""
    return read_logits(output).argmax(dim=1)
