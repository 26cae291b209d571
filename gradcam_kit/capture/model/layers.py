"""Finding the modules that the user means."""

from __future__ import annotations

from collections.abc import Sequence

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


def split_level(model: nn.Module, name: str) -> tuple[str, int | None]:
    """The name of a module, and which of its maps is meant: "fpn:1" is the second one that module `fpn` returns."""
    path, _, level = name.rpartition(":")
    if not path or not level.isdecimal() or name in dict(model.named_modules(remove_duplicate=False)):
        return name, None
    return path, int(level)


def _find_layer(model: nn.Module, layer: object, given: nn.Module) -> tuple[str, nn.Module]:
    if isinstance(layer, str):
        path, level = split_level(given, layer)
        if level is not None:
            name, module = _find_layer(model, path, given)
            return f"{name}:{level}", module
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
