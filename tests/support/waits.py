"""A device on the host: what its tensors hold is there, but looking at it is recorded, as on CUDA it would wait.

On CUDA Python queues work and runs ahead of the device, until it asks for a value or for a size that depends on values.
Here such tensors say that they lie on the device "meta", so the code takes the ways that it takes on a device; their
numbers are computed on the host, so results can be compared.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from gradcam_kit import functional

DEVICE = torch.device("meta")
END = "deferred_checks.raise_first: a copy to the host"
"""The one wait of every call, when all of its work is queued: whether anything was wrong is read there."""
ROWS = "channels.where_true: a copy to the host"
"""Channels that cannot matter get no pass, and how many the others are depends on their values."""
_PACKAGE = "gradcam_kit"

# The size of the result depends on values, Python gets a value, or the solver tells the host whether it converged.
_WAITING = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "histc"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "randperm", "multinomial"),
    *("_linalg_eigh", "_linalg_eigvals", "linalg_eig", "_linalg_svd", "linalg_lstsq", "linalg_matrix_rank"),
}


def waits_of(name: str, layer: str) -> list[str]:
    """Where a method waits in a call with the options in `FEWER` at a layer of `home`, once the model is known.

    Ablation-CAM has no rows behind mean pooling and a linear head.
    """
    rows = {"score-cam": 1, "is-cam": 1, "ss-cam": 1, "ablation-cam": layer != "block2"}
    # Without a graph of the output, what its scores are is read from its values.
    return ["output_graph.score_kind: a copy to the host"] * (name == "sess") + [ROWS] * rows.get(name, 0) + [END]


def metric_waits(name: str) -> list[str]:
    """Where a metric waits: for the method that it runs again, for the solver of ROAD to converge, for OpenCV, SLIC."""
    runs_again = name in ("coherency", "adcc", "arcc", "sensitivity-max", "local-lipschitz")
    runs_again = runs_again or name.startswith("relative-")
    imputes = name.startswith("road") or name == "arcc"
    finds_boxes = name == "box-accuracy"
    further = ["imputation._solve"] * imputes + ["boxes.box_overlaps"] * finds_boxes
    further += ["regions.superpixels"] * (name == "irof")
    return ["deferred_checks.raise_first"] * runs_again + further


class OnDevice(Tensor):
    """A tensor of the device; `held` are its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        tensor: OnDevice = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=DEVICE, **layout)
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, [])


class Device(TorchDispatchMode):
    """Lets tensors be made on the device for the duration of the block; `waits` says where one was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = (Tensor, nn.Parameter, OnDevice)
        if any(isinstance(leaf, Tensor) and type(leaf) not in known for leaf in tree_leaves((args, kwargs))):
            return NotImplemented
        return _compute(func, args, kwargs or {}, self.waits)


@contextmanager
def device() -> Iterator[Device]:
    """The device, for the duration of the block; where autocast is asked for, it is that of the host.

    Memory can be pinned only where there is a real device, so that is played too: pinned tensors are marked, and this
    device is one that copies from them while the host goes on.
    """

    def of_host(function: Any) -> Any:
        return lambda *kind, **options: function(*("cpu" if one == DEVICE.type else one for one in kind), **options)

    names = ("autocast", "get_autocast_dtype", "is_autocast_enabled")
    with (
        patch.multiple(torch, **{name: of_host(getattr(torch, name)) for name in names}),
        patch.object(Tensor, "pin_memory", _pinned),
        patch.object(functional, "_FROM_PINNED", {DEVICE.type}),
        Device() as found,
    ):
        yield found


def _pinned(tensor: Tensor) -> Tensor:
    assert tensor.is_contiguous(), "memory in which an entry may stand for several cannot be pinned"
    copied = tensor.clone()
    copied.was_pinned = True  # type: ignore[attr-defined]
    return copied


def on_device(value: Any) -> Any:
    """A copy of tensors, or of a model, on the device."""
    if not isinstance(value, nn.Module):
        return tree_map(lambda leaf: OnDevice(leaf.clone()) if isinstance(leaf, Tensor) else leaf, value)
    value = copy.deepcopy(value)
    for module in value.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnDevice(parameter.detach()), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else OnDevice(buffer)
    return value


def on_host(value: Any) -> Any:
    """The values of tensors of the device."""
    return tree_map(lambda leaf: leaf.held if isinstance(leaf, OnDevice) else leaf, value)


def _compute(func: Any, args: Any, kwargs: dict[str, Any], waits: list[str]) -> Any:
    """Run an operation on what its tensors hold."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    here = [tensor for tensor in tensors if tensor.device.type != DEVICE.type]
    name = func._schema.name.removeprefix("aten::")
    wanted = kwargs.get("device")
    goes_there = bool(there) if wanted is None else torch.device(wanted) == DEVICE
    if len(tensors) > len(there) + len(here):
        # torch.tensor(values, device=...) copies them from memory that the device cannot read by itself.
        raise RuntimeError(f"{_where()}: a tensor of values was made on the device, which waits; use full or arange")
    if (reason := _reason(name, args, kwargs, there, here, goes_there)) is not None:
        waits.append(f"{_where()}: {reason}")
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held_args, held_kwargs = on_host((args, kwargs))
    result = func(*held_args, **held_kwargs)
    if not goes_there:
        return result
    result = tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, Tensor) else leaf, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if there else result


def _reason(
    name: str, args: Any, kwargs: dict[str, Any], there: list[Any], here: list[Tensor], goes_there: bool
) -> str | None:
    """Why CUDA would be waited for by this operation; None if it would not."""
    if name in ("_to_copy", "copy_"):
        source, target = (args[0], goes_there) if name == "_to_copy" else (args[1], isinstance(args[0], OnDevice))
        if isinstance(source, OnDevice) == target:
            return None
        blocks = not (kwargs.get("non_blocking") or True in args[2:])
        if target:
            unread = blocks or source.dtype != kwargs.get("dtype", source.dtype) or not hasattr(source, "was_pinned")
            return "a copy from the host that is waited for" if unread else None
        return "a copy to the host" if blocks else "a copy to the host that is read before it is there"
    if not there:
        return None
    if name in ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"):
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return f"{name} by a condition"
        if not all(isinstance(index, OnDevice) for index in indices):
            return f"{name} by indices on the host"
        if "put" in name and not isinstance(args[2], OnDevice):
            return f"{name} of a number on the host"
        here = [tensor for tensor in here if not any(tensor is index for index in indices)]
    elif name == "repeat_interleave" and kwargs.get("output_size") is None:
        return "repeat_interleave without output_size"
    if any(tensor.ndim for tensor in here):
        raise RuntimeError(f"{_where()}: {name} got tensors on the host and on the device")
    return name if name in _WAITING else None


def _where() -> str:
    """The function of the package that asked for it; `on_host` asks for others."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if _PACKAGE in path.parts[:-1] and frame.name not in ("on_host", "holds", "__torch_function__"):
            return f"{path.stem}.{frame.name}"
    return "the test"
