"""Rerun a module on its inputs, and name the operator and the line that produced a NaN or infinity."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gradcam_kit.capture import unobservable
from gradcam_kit.diagnostics.checks.preserving import left_as_found

# Operators that may write infinities on purpose, and operators that leave memory uninitialized.
_FILLS = ("masked_fill", "fill", "full", "where", "scalar_tensor", "new_full", "lift_fresh", "_to_copy")
_UNWRITTEN = ("empty", "new_empty")
_HERE, _TORCH = str(Path(__file__)), str(Path(torch.__file__).parent)
_LIBRARY = sysconfig.get_paths()["stdlib"]


@dataclass(frozen=True)
class Place:
    """The operator that produced the first non-finite value, and the line that called it; "" if unknown."""

    operator: str = ""
    line: str = ""


@dataclass(frozen=True, eq=False)
class Recorded:
    """The inputs of a module: copies of its arguments, its buffers and the states of the random generators.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        buffers: owner, name and a copy of the values, for each buffer of the module and of the modules inside it.
        states: device and state of each random generator.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    buffers: tuple[tuple[nn.Module, str, Tensor], ...]
    states: tuple[tuple[torch.device, Tensor], ...]

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Recorded:
        """Copy the inputs of the module before it runs."""
        buffers = tuple(
            (part, name, buffer.detach().clone())
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        )
        tensors = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
        devices = {own.device for own in (*tensors, *module.parameters(), *module.buffers())}
        states = tuple((own, torch.get_device_module(own).get_rng_state(own)) for own in devices if own.type == "cuda")
        copied_args, copied_kwargs = tree_map_only(Tensor, _copied, (args, dict(kwargs)))
        return cls(copied_args, copied_kwargs, buffers, ((torch.device("cpu"), torch.get_rng_state()), *states))

    def find(self, module: nn.Module, kind: str) -> Place:
        """Run the module again without a graph, and return where the first non-finite value was produced.

        Buffers, modes and generators are restored afterwards. If the module changed other state and therefore fails the
        second time, the place is unknown.

        Args:
            module: the recorded module.
            kind: "nan" or "inf", whichever its output holds.
        """
        watch = _Watch()
        with left_as_found(module, self.args), torch.no_grad():
            for part, name, values in self.buffers:
                part._buffers[name] = values  # copies, because the backward pass may need the originals
            for device, state in self.states:
                _set_state(device, state)
            try:
                with watch:
                    module.forward(*self.args, **self.kwargs)
            except Exception:
                return Place()
        return watch.first or (watch.first_nan if kind == "nan" else None) or Place()


class _Watch(TorchDispatchMode):
    """Finds the first operator with finite inputs and a non-finite output, and the first one that produces NaN."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.first: Place | None = None
        self.first_nan: Place | None = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _tensors((args, kwargs or {}))
        finite, without_nan = all(map(_is_finite, given)), not any(map(_has_nan, given))
        output = function(*args, **(kwargs or {}))
        name = str(function.overloadpacket.__name__)
        if self.first is None and without_nan and not name.startswith(_UNWRITTEN):
            made = _tensors(output)
            if finite and not name.startswith(_FILLS) and not all(map(_is_finite, made)):
                self.first = Place(name, _calling_line())
            elif self.first_nan is None and any(map(_has_nan, made)):
                self.first_nan = Place(name, _calling_line())
        return output


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _set_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if unobservable(leaf) is None]


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _has_nan(tensor: Tensor) -> bool:
    return bool(tensor.isnan().any())


def _calling_line() -> str:
    """Return file, line and code of the innermost call: in user code if there is any, else in torch's modules."""
    frames = traceback.extract_stack()
    start = max(place for place, frame in enumerate(frames) if frame.filename == _HERE and frame.name == "find")
    inside = [frame for frame in frames[start + 1 :] if frame.filename != _HERE and "jaxtyping" not in frame.filename]
    users = [frame for frame in inside if not frame.filename.startswith((_TORCH, _LIBRARY))]
    modules = [frame for frame in inside if "/nn/modules/" in frame.filename.replace("\\", "/")]
    found = [*modules[-1:], *users[-1:]]
    if not found:
        return ""
    return f"{found[-1].filename}:{found[-1].lineno}: {found[-1].line}"
