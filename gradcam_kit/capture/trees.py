"""Walking through what a model returns: tensors, containers, and objects that carry tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def map_output(
    function: Callable[..., Any], output: Any, *others: Any, is_leaf: Callable[[Any], bool] | None = None
) -> Any:
    """Apply `function` to every tensor of a model's output, and return an output of the same kind.

    Mappings of any class and objects with attributes (dataclasses, simple records) are copied; what holds no tensor
    stays as it is. `others` are outputs of the same structure, whose entries `function` gets too.
    """
    if is_leaf is not None and is_leaf(output):
        return function(output, *others)
    if isinstance(output, Tensor):
        return function(output, *others)
    if isinstance(output, Mapping) and type(output) is not dict:
        changed = copy.copy(output)
        for key, value in output.items():
            changed[key] = map_output(function, value, *(other[key] for other in others), is_leaf=is_leaf)  # type: ignore[index]
        return changed
    if isinstance(output, dict):
        return {
            key: map_output(function, value, *(other[key] for other in others), is_leaf=is_leaf)
            for key, value in output.items()
        }
    if isinstance(output, tuple | list):
        entries = [map_output(function, *values, is_leaf=is_leaf) for values in zip(output, *others, strict=True)]
        return type(output)(*entries) if hasattr(output, "_fields") else type(output)(entries)
    if hasattr(output, "__dict__") and not callable(output):
        changed = copy.copy(output)
        for key, value in vars(output).items():
            found = map_output(function, value, *(getattr(other, key) for other in others), is_leaf=is_leaf)
            object.__setattr__(changed, key, found)
        return changed
    return output
