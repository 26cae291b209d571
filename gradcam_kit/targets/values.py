"""Convert classes and numbers from users into tensors that share no memory with the originals."""

from __future__ import annotations

import copy
from collections.abc import Sized
from dataclasses import fields
from operator import index as as_index
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import InputError, ShapeError, kind_of
from gradcam_kit.functional import at_least_float32

Classes = Any
"""An int (also NumPy's), or one or m ints for each sample: a sequence, an array or a tensor."""

_T = TypeVar("_T")
_MOST_SHOWN = 8
ALL_CLASSES = "torch.arange({count}).expand(n, -1), which explains all classes, and keep heatmaps[labels.bool()]"
"""Advice for multi-label data."""


def read_classes(classes: Any) -> int | Tensor:
    """Return an int for all samples, or a copy of class indices `(n,)` or `(n, m)` from any container.

    Raises:
        InputError: the values are not integers.
        ShapeError: rows have different lengths, or there are more than two axes.
    """
    if getattr(classes, "ndim", 0) == 0 and getattr(classes, "dtype", type(classes)) not in (bool, torch.bool):
        try:
            return as_index(classes)  # this includes NumPy integers and 0-d integer tensors
        except TypeError:
            pass
    try:
        found = classes if isinstance(classes, Tensor) else torch.as_tensor(np.asarray(classes), device="cpu")
    except (TypeError, ValueError) as error:
        raise _no_classes(classes) from error
    found = found if found.numel() else found.long()
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        one_hot = ""
        if found.ndim == 2:
            several = ALL_CLASSES.format(count=found.shape[1])
            one_hot = f"; for one-hot labels or scores pass targets.float().argmax(1), for multi-hot labels {several}"
        raise InputError(f"targets are {found.dtype}; expected integer class indices{one_hot}")
    if found.ndim not in (1, 2) or found.shape[-1] == 0 < found.ndim - 1:
        raise ShapeError(f"targets have shape {tuple(found.shape)}; expected (n,) or (n, m) with m of at least 1")
    return _own(found)


def _no_classes(classes: Any) -> InputError | ShapeError:
    """Return the error for a value that is not an array of numbers."""
    expected = "expected None, an int, class indices (n,) or (n, m), names in model.class_names, or a callable"
    if not isinstance(classes, list | tuple):
        return InputError(f"targets is {kind_of(classes)}; {expected}{for_class_names('targets', classes)}")
    if any(callable(entry) for entry in classes):
        return InputError(
            f"targets is {kind_of(classes)} of callables; expected one callable for the whole batch, from "
            "the model's output to scores (n,), like those of gradcam_kit.targets. For classes pass their "
            "indices: 281, or one per image"
        )
    if all(isinstance(entry, Sized) and not isinstance(entry, str) for entry in classes):
        lengths = sorted({len(entry) for entry in classes})
        return ShapeError(
            f"targets has rows of {' and '.join(map(str, lengths))} classes; expected the same number for each "
            "image, (n, m). Repeat a class to fill up a row, or make a separate call for each number of classes"
        )
    return InputError(f"targets is {kinds_in(classes)}; {expected}{for_class_names('targets', classes)}")


def kinds_in(value: Any) -> str:
    """Return the kind of a value, with the types of the entries of a list, such as "a list of str"."""
    if not isinstance(value, list | tuple):
        return kind_of(value)
    return f"{kind_of(value)} of {', '.join(sorted({type(entry).__name__ for entry in value}))}"


def for_class_names(name: str, value: Any) -> str:
    """Return advice for class names where indices are expected, or an empty string for other values."""
    if isinstance(value, str):
        return f"; for a class name pass its index: class_names.index({value!r})"
    entries = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, str) for entry in entries):
        return ""
    return f"; for class names pass their indices: [class_names.index(name) for name in {name}]"


def read_numbers(name: str, value: Any) -> Float[Tensor, "..."]:
    """Return a copy of finite numbers from any container, in at least float32.

    Raises:
        InputError: the value is not an array of finite real numbers; the message contains `name`.
    """
    try:
        found = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is {kind_of(value)}; expected an array of numbers") from error
    if found.is_complex() or not torch.isfinite(found).all():
        raise InputError(f"{name} has complex, NaN or infinite values; expected finite numbers")
    return at_least_float32(_own(found))


def _own(tensor: Tensor) -> Tensor:
    """Return an independent copy, made outside inference mode so that it can enter a graph."""
    with torch.inference_mode(False):
        return tensor.detach().clone()


def changed(target: _T, /, **values: Any) -> _T:
    """Return a copy of a target with other values in some fields, without checks, which would synchronize."""
    own = copy.copy(target)
    for name, value in values.items():
        object.__setattr__(own, name, value)
    return own


def show(target: Any) -> str:
    """Return the `repr` of a target: its arguments, where large tensors are shown as their type and shape."""
    parts = []
    for one in fields(target):
        value = getattr(target, one.name)
        if not one.repr or value is one.default:
            continue
        if isinstance(value, Tensor):
            value = value.tolist() if value.numel() <= _MOST_SHOWN else f"<{value.dtype} {tuple(value.shape)}>"
        parts.append(f"{one.name}={value if isinstance(value, str) and value[:1] == '<' else repr(value)}")
    return f"{type(target).__name__}({', '.join(parts)})"
