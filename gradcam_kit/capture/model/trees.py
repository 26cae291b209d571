"""Walk through the output of a model: tensors, containers, and objects with tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor


def map_output(
    function: Callable[..., Any], output: Any, *others: Any, is_leaf: Callable[[Any], bool] | None = None
) -> Any:
    """Apply `function` to every tensor of a model's output, and return an output of the same kind.

    Mappings of any class and objects with attributes (dataclasses, simple records) are copied; parts without tensors
    are left unchanged. `others` are outputs of the same structure, whose entries are passed to `function` too. A part
    for which `is_leaf` is true is passed to `function` as if it were a tensor.
    """
    if is_leaf is not None and is_leaf(output):
        return function(output, *others)
    if isinstance(output, Tensor):
        return function(output, *others)
    if isinstance(output, Mapping) and type(output) is not dict:
        changed = _copied(output)
        for key, value in output.items():
            changed[key] = map_output(function, value, *(other[key] for other in others), is_leaf=is_leaf)
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


def _copied(mapping: Mapping[Any, Any]) -> Any:
    """Return a copy that does not share containers with its original, not even those in attributes."""
    changed = copy.copy(mapping)
    for name, value in getattr(changed, "__dict__", {}).items():
        if isinstance(value, dict | list):
            object.__setattr__(changed, name, copy.copy(value))
    return changed


def move_tree(value: Any, device: torch.device) -> Any:
    """Return the same structure with all tensors on one device, because a model may be spread over several devices."""
    # Copies to the host are synchronous, because no later operation would wait for an asynchronous copy.
    return map_output(lambda tensor: tensor.to(device, non_blocking=device.type != "cpu"), value)


def whole(value: Any) -> Any:
    """Return a distributed tensor (DTensor) as a plain tensor, and any other value unchanged."""
    return value.full_tensor() if isinstance(value, Tensor) and hasattr(value, "full_tensor") else value


def device_of(output: Any, otherwise: torch.device) -> torch.device:
    """Return the device of a model's output, or `otherwise` if it has no tensor."""
    return next((tensor.device for tensor in tensors_of(output)), otherwise)


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Yield every tensor in a model's output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from chain.from_iterable(map(tensors_of, output.values()))
    elif isinstance(output, tuple | list):
        yield from chain.from_iterable(map(tensors_of, output))
    elif hasattr(output, "__dict__") and not callable(output):
        yield from chain.from_iterable(map(tensors_of, vars(output).values()))
