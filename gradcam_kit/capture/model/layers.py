"""Find the modules to which target layers and layer patterns refer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from gradcam_kit.capture.model.forks import is_scripted
from gradcam_kit.capture.model.state import unwrap
from gradcam_kit.errors import InputError, LayerNotFoundError, did_you_mean, kind_of

TargetLayers = nn.Module | str | Sequence[nn.Module | str]

LayerPattern: TypeAlias = str | nn.Module | type[nn.Module]
"""A dotted name, a wildcard over dotted names (`*` crosses dots), a module, or a type of modules."""
LayerPatterns: TypeAlias = LayerPattern | Sequence[LayerPattern] | None

_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_WHOLE = (nn.MultiheadAttention,)
"""Modules that use the weights of their children without calling them."""


def find_layers(model: nn.Module, target_layers: TargetLayers, given: nn.Module) -> dict[str, nn.Module]:
    """Map the names of the target layers to modules of the unwrapped model, in the given order.

    Args:
        model: the unwrapped model.
        target_layers: the layers as passed by the user.
        given: the model that the user passed. Names of layers may carry the prefixes of its wrappers.

    Raises:
        LayerNotFoundError: the model does not have one of the layers.
        InputError: `target_layers` has another type or is empty, or a layer is a TorchScript module.
    """
    if isinstance(target_layers, str | nn.Module):
        target_layers = [target_layers]
    if not isinstance(target_layers, Sequence):
        raise InputError(
            f"target_layers is {kind_of(target_layers)}; expected a module or its name, a sequence of them, or None"
        )
    if not target_layers:
        raise InputError("target_layers is empty; name at least one layer, or pass None to have one chosen")
    found = dict(_find_layer(model, layer, given) for layer in target_layers)
    for name, module in found.items():
        if is_scripted(module):
            raise InputError(
                f"layer {name!r} is a TorchScript module, which cannot be observed; choose the module around it"
            )
    return found


@dataclass(frozen=True)
class LayerName:
    """The parsed name of a target layer.

    "act#2" is the second call of module `act` in a pass, "fpn:1" the second map that module `fpn` returns, and
    "head#2:0" the first map of the second call of `head`.

    Attributes:
        path: the name of the module.
        call: number of the call, counted from 1; None = the module's only call.
        level: index of the map, counted from 0; None = the module's only map.
    """

    path: str
    call: int | None = None
    level: int | None = None

    @property
    def suffix(self) -> str:
        """The part of the name after the name of the module, such as "#2:0"."""
        return f"#{self.call}" * (self.call is not None) + f":{self.level}" * (self.level is not None)


_SUFFIXES = (r"(.+)#(\d+)()", r"(.+)()[:](\d+)", r"(.+)#(\d+)[:](\d+)")


def split_name(model: nn.Module, name: str) -> LayerName:
    """Split the name of a target layer, but keep "#" and ":" that are part of a module's own name."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if name in modules:
        return LayerName(name)
    found = [match for pattern in _SUFFIXES if (match := re.fullmatch(pattern, name))]
    for match in [match for match in found if match[1] in modules] or found[:1]:
        return LayerName(match[1], int(match[2]) if match[2] else None, int(match[3]) if match[3] else None)
    return LayerName(name)


def select_layers(model: nn.Module, layers: Any = None, given: nn.Module | None = None) -> dict[str, nn.Module]:
    """Return the modules that match the patterns, by name and in the order of `model.named_modules()`.

    Args:
        model: the unwrapped model.
        layers: a dotted name, a wildcard such as "layer*.conv2" (`*` crosses dots), a module, a type of modules, a
            sequence of these, or None for all modules without children.
        given: the model that the user passed. Names of layers may carry the prefixes of its wrappers.

    Raises:
        LayerNotFoundError: no module of the model matches a pattern.
        InputError: a pattern has another type, or the sequence is empty.

    Example:
        >>> list(select_layers(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Linear))
        ['0']
    """
    names = {name or type(model).__name__: module for name, module in model.named_modules(remove_duplicate=False)}
    if layers is None:
        found = {module: name for name, module in _without_children(model)}
    else:
        patterns = layers if isinstance(layers, list | tuple) else [layers]
        if not patterns:
            raise InputError("layers is empty; give at least one name, wildcard or type, or None for all layers")
        prefixed = dict(given.named_modules(remove_duplicate=False)) if given is not None else {}
        chosen: dict[nn.Module, str] = {}
        for pattern in patterns:
            for name, module in _matches(model, pattern, names, prefixed):
                chosen.setdefault(module, name)
        order = {module: place for place, module in reversed(list(enumerate(names.values())))}
        found = {module: chosen[module] for module in sorted(chosen, key=order.__getitem__)}
    return {name: module for module, name in found.items() if not is_scripted(module)}


def _without_children(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inner: set[nn.Module] = set()
    for name, module in model.named_modules():
        hidden = [child for child_name, child in module.named_children() if child_name == "parametrizations"]
        if isinstance(module, _WHOLE):
            hidden = list(module.children())
        inner.update(part for child in hidden for part in child.modules())
        is_leaf = all(child in inner for child in module.children())
        if is_leaf and module not in inner and not isinstance(module, _NEVER_CALLED):
            yield name or type(model).__name__, module


def _matches(
    model: nn.Module, pattern: object, names: dict[str, nn.Module], prefixed: dict[str, nn.Module]
) -> list[tuple[str, nn.Module]]:
    """Return all modules that a pattern matches, or raise LayerNotFoundError if it does not match any."""
    kind = type(model).__name__
    if isinstance(pattern, nn.Module):
        own = unwrap(pattern)
        found = [(name, module) for name, module in names.items() if module is own][:1]
        if not found:
            raise LayerNotFoundError(
                f"the {type(own).__name__} given as layer is not a part of this {kind}; take it from the same model "
                "object, or give its name from model.named_modules()"
            )
        return found
    if isinstance(pattern, type) and issubclass(pattern, nn.Module):
        found = [(name, module) for name, module in model.named_modules() if isinstance(module, pattern)]
        if not found:
            present = sorted({type(module).__name__ for module in model.modules()})
            hint = did_you_mean(pattern.__name__, present) or f"; it has {', '.join(present)}"
            raise LayerNotFoundError(f"{kind} has no layer of type {pattern.__name__}{hint}")
        return [(name or kind, module) for name, module in found]
    if isinstance(pattern, str):
        if pattern in names:
            return [(pattern, names[pattern])]
        if prefixed.get(pattern) is not None:
            return _matches(model, prefixed[pattern], names, {})
        found = [(name, module) for name, module in names.items() if name != kind and fnmatchcase(name, pattern)]
        if not found:
            known = [name for name in names if name != kind]
            hint = did_you_mean(pattern.strip("*"), known)
            hint = hint or f"; its layers are {', '.join(known[:8])}{', ...' * (len(known) > 8)}"
            raise LayerNotFoundError(f"{kind} has no layer {pattern!r}{hint}")
        return found
    raise InputError(f"a layer is {kind_of(pattern)}; expected a name, a wildcard, a module or a type of modules")


def _find_layer(model: nn.Module, layer: object, given: nn.Module) -> tuple[str, nn.Module]:
    if isinstance(layer, str):
        parts = split_name(given, layer)
        if parts.call == 0:
            raise LayerNotFoundError(f"{layer!r} is not a call of {parts.path!r}: the first call is '{parts.path}#1'")
        if parts.suffix:
            name, module = _find_layer(model, parts.path, given)
            return f"{name}{parts.suffix}", module
        modules = dict(model.named_modules(remove_duplicate=False))
        if layer and layer in modules:
            return layer, unwrap(modules[layer])
        wrapped = dict(given.named_modules(remove_duplicate=False)) if given is not model else {}
        if layer and layer in wrapped:
            return layer, unwrap(wrapped[layer])
        names = [name for name in modules if name]
        hint = did_you_mean(layer, names) or f"; its layers are {', '.join(names[:8])}{', ...' * (len(names) > 8)}"
        raise LayerNotFoundError(f"{type(model).__name__} has no layer {layer!r}{hint}")
    if isinstance(layer, nn.Module):
        for name, module in model.named_modules():
            if module is layer or module is unwrap(layer):
                return name or type(model).__name__, unwrap(module)
        raise LayerNotFoundError(
            f"the {type(layer).__name__} given as target layer is not part of this {type(model).__name__}; "
            "take it from the same model object, or give its name from model.named_modules()"
        )
    raise InputError(f"a target layer is {kind_of(layer)}; expected a module or its name")
