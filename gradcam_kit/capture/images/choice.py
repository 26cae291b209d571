"""Choose the image input of a model with several inputs: the one on which the layers depend."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.gradients.backward import behind
from gradcam_kit.capture.images.channels import with_channels
from gradcam_kit.capture.model.inputs import Inputs, Runner, Slot
from gradcam_kit.capture.model.layers import split_name
from gradcam_kit.capture.model.state import untouched
from gradcam_kit.capture.recording import NOT_MODULES
from gradcam_kit.errors import InputError

_known: WeakKeyDictionary[nn.Module, dict[Hashable, dict[str, frozenset[Slot]]]] = WeakKeyDictionary()
"""The inputs on which the layers of a model depend, cached by model."""


def image_input_of(
    model: nn.Module, inputs: Inputs, layers: Mapping[str, nn.Module], asked: Slot | None = None
) -> Inputs:
    """Return the call with the image input set to the input on which the layers depend.

    If there are several such inputs, one with more than one position axis is preferred. The model is not run if only
    one of its inputs could be images.

    Args:
        model: the model, which is run once, with a graph, for layers not seen before.
        inputs: the inputs of the call.
        layers: the target layers by name.
        asked: the input that the user named; None = found automatically.

    Raises:
        InputError: the layers depend on different inputs, or not on the input that the user named.
    """
    modules = {name: module for name, module in layers.items() if name not in NOT_MODULES}
    slots = inputs.image_slots
    if len(slots) < 2 or not modules:
        return inputs
    found = _dependences(model, inputs, modules)
    shared = [slot for slot in slots if all(slot in own for own in found.values())]
    described = "; ".join(f"{name!r} on {_listed(own)}" for name, own in found.items())
    if not shared:
        raise InputError(
            f"the layers depend on different inputs ({described}), and maps of different inputs cannot be "
            "fused; explain the layers one by one"
        )
    if asked is not None and asked not in shared:
        raise InputError(f"image_input is {asked!r}, but the layers depend on other inputs: {described}")
    return inputs if asked is not None else with_channels(model, inputs.at(preferred(inputs, shared)))


def preferred(inputs: Inputs, slots: list[Slot]) -> Slot:
    """Return the first of these inputs that has more than one position axis, else the first input."""
    return min(slots, key=lambda slot: inputs.value(slot).ndim == 3)


def _listed(slots: frozenset[Slot]) -> str:
    return ", ".join(sorted(f"argument {slot}" if isinstance(slot, int) else repr(slot) for slot in slots))


def sees_images(model: nn.Module, inputs: Inputs, layers: Mapping[str, nn.Module]) -> set[str]:
    """Return the names of the layers that depend on the images.

    If the user did not name the images, every input with as many axes as the images that were found counts as images.
    """
    slots = inputs.image_slots
    if len(slots) < 2 or not layers:
        return set(layers)
    axes = inputs.raw.ndim
    wanted = {inputs.slot} if inputs.is_asked else {slot for slot in slots if inputs.value(slot).ndim == axes}
    return {name for name, own in _dependences(model, inputs, layers).items() if own & wanted}


def _dependences(model: nn.Module, inputs: Inputs, layers: Mapping[str, nn.Module]) -> dict[str, frozenset[Slot]]:
    """Return the inputs on which each layer depends, or all inputs for a layer without a graph (no_grad, detach)."""
    known = _known.setdefault(model, {})
    key = (tuple(layers), tuple((slot, inputs.value(slot).ndim) for slot in inputs.image_slots))
    if key not in known:
        known[key] = _follow(model, inputs, layers)
    return known[key]


def _follow(model: nn.Module, inputs: Inputs, layers: Mapping[str, nn.Module]) -> dict[str, frozenset[Slot]]:
    nodes: dict[str, list[Any]] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        calls, meant = 0, split_name(model, name).call

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal calls
            calls += 1
            if meant in (None, calls):
                tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
                nodes.setdefault(name, []).extend(tensor.grad_fn for tensor in tensors)

        return hook

    device = inputs.images.device
    with untouched(model, device), torch.enable_grad():
        watched = inputs.with_images(inputs.images)
        leaves = {slot: inputs.value(slot).detach().clone().requires_grad_() for slot in inputs.image_slots}
        for slot, leaf in leaves.items():
            # The model may change its input in place, which is not allowed for a leaf.
            watched = watched.at(slot).replacing(leaf.clone())
        with holding_hooks() as attach:
            for name, module in layers.items():
                attach.after(module, keep(name))
            Runner.of(model, device)(watched)
    places = {id(leaf): slot for slot, leaf in leaves.items()}
    found = {}
    for name in layers:
        sources = {id(getattr(node, "variable", None)) for start in nodes.get(name, []) for node in behind(start)}
        found[name] = frozenset(places[source] for source in sources if source in places) or frozenset(leaves)
    return found
