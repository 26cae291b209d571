"""Tensors that modules keep besides parameters and buffers: features of the last pass, position tables, hidden states.

Tensors of the user's graph, and those made under `inference_mode`, cannot take part in our passes, so clones replace
them during a pass. Tensors that our pass leaves behind are removed again, because they belong to our graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from gradcam_kit.errors import GradCamKitError, interruption

_INTERNAL = frozenset(vars(nn.Module()))
_SIMPLE = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, range, slice)
_DEPTH = 6
_MOST = 1000  # maximum number of objects visited per module, because a module may hold a trainer or a data set


@dataclass(frozen=True)
class Place:
    """A place where a tensor is kept.

    Attributes:
        path: path from the module in Python's notation.
        tensor: the tensor found at the place.
        get: function that reads the place.
        put: function that writes a value to the place.
    """

    path: str
    tensor: Tensor
    get: Callable[[], Any]
    put: Callable[[Any], None]


@dataclass
class _Store:
    """A mutable container and its original content."""

    content: Any
    before: Any

    def entries(self) -> dict[Any, Any]:
        return dict(self.content) if isinstance(self.content, dict) else dict(enumerate(self.content))

    def changed_values(self) -> list[Any]:
        """Return the old and new values of entries that were added, removed or replaced."""
        now, before = self.entries(), self.before
        keys = [key for key in {**now, **before} if now.get(key, _NOTHING) is not before.get(key, _NOTHING)]
        return [value for key in keys if not _is_internal(key) for value in (now.get(key), before.get(key))]

    def restore(self) -> None:
        if not isinstance(self.content, dict):
            self.content.clear()
            self.content.extend(self.before.values())
            return
        for key in [key for key in self.content if key not in self.before and not _is_internal(key)]:
            del self.content[key]
        dict.update(self.content, self.before)


_NOTHING = object()


def _is_internal(name: Any) -> bool:
    return name in _INTERNAL or (isinstance(name, str) and name.startswith("__"))


@dataclass
class _Search:
    """Walks through the objects that a module keeps."""

    module: nn.Module
    met: dict[int, Any]  # shared by all modules of a model, because they may keep the same objects
    places: list[Place] = field(default_factory=list)
    stores: list[_Store] = field(default_factory=list)
    left: int = _MOST
    buffers: dict[str, Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = vars(self.module)
        self.buffers = dict(self.module._buffers)
        kept = {name: value for name, value in own.items() if not _is_internal(name)}
        self.stores.append(_Store(own, kept))
        for name, value in kept.items():
            self._visit(value, partial(own.get, name), partial(own.__setitem__, name), name, _DEPTH, True)
        hooks = [*self.module._forward_pre_hooks.values(), *self.module._forward_hooks.values()]
        for function in (type(self.module).forward, *hooks):
            self._visit(function, lambda: None, lambda _: None, "forward", _DEPTH, False)

    def restore(self) -> None:
        """Restore all values if a tensor changed, because related values, such as a table and its size, must match."""
        changed = [value for store in self.stores for value in store.changed_values()]
        buffers = self.module._buffers
        moved = buffers.keys() != self.buffers.keys() or any(
            buffers[key] is not own for key, own in self.buffers.items()
        )
        if moved or (changed and any(map(_holds_tensors, changed))):
            for store in self.stores:
                store.restore()

    def _visit(
        self, value: Any, get: Callable[[], Any], put: Callable[[Any], None], path: str, depth: int, is_state: bool
    ) -> None:
        if isinstance(value, Tensor):
            self.places.append(Place(path, value, get, put))
            return
        kind = type(value)
        if kind in _SIMPLE or not depth or not self.left or id(value) in self.met:
            return
        if isinstance(value, nn.Module | type | ModuleType | BuiltinFunctionType):
            return
        self.met[id(value)] = value
        self.left -= 1
        if isinstance(value, dict):
            self._visit_store(value, value, path, depth, is_state, "[{!r}]")
        elif isinstance(value, list | deque):
            self._visit_store(value, dict(enumerate(value)), path, depth, is_state, "[{}]")
        elif isinstance(value, tuple):
            self._visit_tuple(value, get, put, path, depth, is_state)
        elif callable(value):  # a function is not state: values that a user's hook records are not undone
            self._visit_callable(value, path, depth)
        elif isinstance(own := getattr(value, "__dict__", None), dict):
            self._visit_store(own, own, path, depth, is_state, ".{}")
        for name in getattr(kind, "__slots__", ()) if not isinstance(value, tuple) else ():
            if isinstance(name, str) and hasattr(value, name):
                read, write = partial(getattr, value, name), partial(object.__setattr__, value, name)
                self._visit(read(), read, write, f"{path}.{name}", depth - 1, is_state)

    def _visit_store(
        self, content: Any, entries: dict[Any, Any], path: str, depth: int, is_state: bool, form: str
    ) -> None:
        if len(entries) > _MOST:
            return
        if is_state:
            self.stores.append(_Store(content, dict(entries)))
        for key, value in list(entries.items()):
            if type(value) not in _SIMPLE:
                get, put = partial(_entry, content, key), partial(content.__setitem__, key)
                self._visit(value, get, put, path + form.format(key), depth - 1, is_state)

    def _visit_tuple(
        self, value: Any, get: Callable[[], Any], put: Callable[[Any], None], path: str, depth: int, is_state: bool
    ) -> None:
        def put_entry(place: int, new: Any) -> None:
            entries = list(get())
            entries[place] = new
            put(type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries))

        def get_entry(place: int) -> Any:
            whole = get()
            return whole[place] if isinstance(whole, tuple) and place < len(whole) else None

        for place, one in enumerate(value[:_MOST]):
            own = f"{path}[{place}]"
            self._visit(one, partial(get_entry, place), partial(put_entry, place), own, depth - 1, is_state)

    def _visit_callable(self, value: Any, path: str, depth: int) -> None:
        if isinstance(value, MethodType):
            self._visit(value.__func__, lambda: None, lambda _: None, path, depth, False)
            self._visit(value.__self__, lambda: None, lambda _: None, path, depth, False)
        elif isinstance(value, FunctionType):
            for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
                with suppress(ValueError):  # an empty cell raises this error
                    get, put = partial(getattr, cell, "cell_contents"), partial(_fill, cell)
                    self._visit(get(), get, put, f"{path} ({name} in its closure)", depth - 1, False)
        elif isinstance(value, partial):
            for argument in (value.func, value.args, value.keywords):
                self._visit(argument, lambda: None, lambda _: None, path, depth - 1, False)
        elif isinstance(own := getattr(value, "__dict__", None), dict):
            self._visit_store(own, own, path, depth, False, ".{}")


def _entry(content: Any, key: Any) -> Any:
    if isinstance(content, dict):
        return content.get(key)
    return content[key] if key < len(content) else None


def _fill(cell: CellType, value: Any) -> None:
    cell.cell_contents = value


def _holds_tensors(value: Any, depth: int = 4) -> bool:
    if isinstance(value, Tensor):
        return True
    if type(value) in _SIMPLE or not depth or callable(value):
        return False
    if isinstance(value, dict):
        return any(_holds_tensors(one, depth - 1) for one in value.values())
    if isinstance(value, list | tuple | deque | set):
        return any(_holds_tensors(one, depth - 1) for one in value)
    return any(_holds_tensors(one, depth - 1) for one in getattr(value, "__dict__", {}).values())


def _keeps_nothing(module: nn.Module) -> bool:
    """Whether a module keeps only parameters and buffers: it is TorchScript, or torch's own without hooks."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    own = type(module).__module__.startswith("torch.nn.modules")
    return own and not module._forward_hooks and not module._forward_pre_hooks and "forward" not in module.__dict__


@contextmanager
def standing_in(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Replace kept tensors that require gradients or are inference tensors with clones, and restore all afterwards."""
    met: dict[int, Any] = {}
    searches = [_Search(module, met) for module in modules if not _keeps_nothing(module)]
    clones: dict[int, Tensor] = {}
    replaced: list[tuple[Place, Tensor]] = []
    written: list[tuple[Place, Tensor, int]] = []
    try:
        with torch.inference_mode(False), torch.no_grad():
            for place in (place for search in searches for place in search.places):
                tensor = place.tensor
                if tensor.is_inference() or tensor.requires_grad:
                    clone = clones.setdefault(id(tensor), tensor.detach().clone())
                    replaced.append((place, clone))  # recorded before the change, which may be interrupted
                    place.put(clone)
                elif not isinstance(tensor, nn.Parameter):
                    written.append((place, tensor.clone(), tensor._version))
        yield
    finally:
        for search in searches:
            search.restore()
        for place, clone in reversed(replaced):
            if place.get() is clone:  # otherwise the model has replaced the clone meanwhile
                place.put(place.tensor)
        for place, values, version in written:
            if place.tensor._version != version:
                with torch.no_grad():
                    place.tensor.copy_(values)


_foreign: WeakSet[nn.Module] = WeakSet()
"""Models that use inference tensors that are not in their attributes, but in a global variable or a cache."""


def normal_tensors_help(model: nn.Module, error: Exception) -> bool:
    """Whether the work failed on an inference tensor, which `normal_tensors` will replace in a second attempt."""
    cause = error.__cause__ if isinstance(error, GradCamKitError) else error
    if type(cause) is not RuntimeError or "nference tensor" not in str(cause) or model in _foreign:
        return False
    if interruption(cause) is not None:
        return False
    _foreign.add(model)
    return True


def normal_tensors(model: nn.Module) -> AbstractContextManager[Any]:
    """Replace inference tensors with clones wherever a model uses them, if the model is known to use some."""
    return _NormalTensors() if model in _foreign else nullcontext()


class _NormalTensors(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.clones: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(self._normal, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _normal(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_inference():
            return leaf
        if id(leaf) not in self.clones:
            self.clones[id(leaf)] = leaf, leaf.clone()
        return self.clones[id(leaf)][1]
