"""Finding the modules that the user means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gradcam_kit.capture.model.state import is_scripted, unwrap
from gradcam_kit.errors import InputError, LayerNotFoundError, did_you_mean, kind_of

TargetLayers = nn.Module | str | Sequence[nn.Module | str]


def find_layers(model: nn.Module, target_layers: TargetLayers, given: nn.Module) -> dict[str, nn.Module]:
    """Map the names of the target layers to modules of the unwrapped model, in the order that was asked for.

    Args:
        model: the unwrapped model.
        target_layers: what the user passed.
        given: the model that the user passed, whose wrapper prefixes its names may carry.

    Raises:
        LayerNotFoundError: a name or module that the model does not have.
    """
    if isinstance(target_layers, str | nn.Module):
        target_layers = [target_layers]
    if not isinstance(target_layers, Sequence):
        raise InputError(
            f"target_layers is {kind_of(target_layers)}; expected a module, its name, a sequence of those, or None"
        )
    if not target_layers:
        raise InputError("target_layers is empty; name at least one layer, or pass None to have one chosen")
    found = dict(_find_layer(model, layer, given) for layer in target_layers)
    for name, module in found.items():
        if is_scripted(module):
            raise InputError(
                f"layer {name!r} is a TorchScript module, which cannot be observed; choose the one around it"
            )
    return found


@dataclass(frozen=True)
class LayerName:
    """What the name of a target layer says: "act#2" is the second call of module `act` in a pass, "fpn:1" the second
    map that module `fpn` returns, and "head#2:0" the first map of the second call of `head`.

    Attributes:
        path: the name of the module.
        call: which of its calls, counted from 1; None = the only one.
        level: which of its maps, counted from 0; None = the only one.
    """

    path: str
    call: int | None = None
    level: int | None = None

    @property
    def suffix(self) -> str:
        """What stands behind the module's name."""
        return f"#{self.call}" * (self.call is not None) + f":{self.level}" * (self.level is not None)


_SUFFIXES = (r"(.+)#(\d+)()", r"(.+)()[:](\d+)", r"(.+)#(\d+)[:](\d+)")


def split_name(model: nn.Module, name: str) -> LayerName:
    """Split the name of a target layer; characters of a module's own name count as part of it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if name in modules:
        return LayerName(name)
    found = [match for pattern in _SUFFIXES if (match := re.fullmatch(pattern, name))]
    for match in [match for match in found if match[1] in modules] or found[:1]:
        return LayerName(match[1], int(match[2]) if match[2] else None, int(match[3]) if match[3] else None)
    return LayerName(name)


def _find_layer(model: nn.Module, layer: object, given: nn.Module) -> tuple[str, nn.Module]:
    if isinstance(layer, str):
        parts = split_name(given, layer)
        if parts.call == 0:
            raise LayerNotFoundError(f"{layer!r} is not a call of {parts.path!r}: the first one is '{parts.path}#1'")
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
            f"the {type(layer).__name__} given as target layer is no part of this {type(model).__name__}; "
            "take it from the same model object, or give its name from model.named_modules()"
        )
    raise InputError(f"a target layer is {kind_of(layer)}; expected a module or the name of one")
