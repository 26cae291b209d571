"""Run one pass for several methods: find the methods that can share it, choose layers, and distribute the results."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.capture import (
    Capture,
    ClassTarget,
    Inputs,
    Request,
    capture,
    choose_among,
    image_input_of,
    in_fastest_format,
    layer_candidates,
    read_inputs,
    resolve_target,
    split_name,
    with_channels,
    with_texts,
)
from gradcam_kit.errors import InputError, kind_of
from gradcam_kit.methods.contract import Method, rule_of
from gradcam_kit.methods.engine.advice import advise
from gradcam_kit.methods.engine.assembly import assemble, signed_maps
from gradcam_kit.methods.engine.explanation import Explanation
from gradcam_kit.targets.names import carried_names
from gradcam_kit.types import Evidence, GradientRule, Images, Target


def explain_all(
    methods: Iterable[Method],
    images: Images,
    targets: Any = None,
    *,
    keep_modes: bool | None = None,
    **forward_kwargs: Any,
) -> list[Float[Tensor, "n *mt"]]:
    """Return the heatmaps of several methods, which share passes if they can. They equal those of separate calls.

    Methods on the same model that score classes in the same way (all but Finer-CAM, Shapley-CAM and similar methods)
    share one forward and one backward pass, even at different layers. They must have the same `reshape`, `keep_modes`
    and image input.

    Args:
        methods: CAM objects.
        images: the images, as in a call of one of the methods.
        targets: the targets, as in a call of one of the methods.
        keep_modes: whether to leave modules in train mode as they are, for dropout that is active on purpose; None =
            the setting of each method. With active dropout, methods that share a pass share its random draws, and the
            maps of a batch differ from those of its images one by one; see `BaseCAM`.
        forward_kwargs: keyword arguments passed on to the model.

    Returns:
        One tensor of heatmaps per method, in their order.
    """
    return [explanation.heatmaps for explanation in _explain(methods, images, targets, forward_kwargs, keep_modes)]


def explain_many(
    cams: Iterable[Method], images: Images, targets: Any = None, **forward_kwargs: Any
) -> list[Explanation]:
    """Return the explanations of several methods, which share passes as in `explain_all`."""
    return _explain(cams, images, targets, forward_kwargs)


@torch.inference_mode(False)
def _explain(
    cams: Iterable[Any],
    images: Images,
    targets: Any,
    forward_kwargs: dict[str, Any],
    keep_modes: bool | None = None,
) -> list[Explanation]:
    cams = list(cams)
    for position, cam in enumerate(cams):
        if not isinstance(cam, Method):
            raise InputError(f"methods[{position}] is {kind_of(cam)}; expected CAM objects such as GradCAM(model)")
    if keep_modes is not None:
        cams = [_with_modes(cam, keep_modes) for cam in cams]
    inputs = read_inputs(images, forward_kwargs, *(cam.model for cam in cams))
    # Prepare inputs and targets for each model separately, because text targets are encoded by the model itself.
    on = {
        id(model): with_texts(model, inputs, targets) for model in {id(cam.model): cam.model for cam in cams}.values()
    }
    called = [with_images_of(cam, *on[id(cam.model)]) for cam in cams]
    groups: dict[Any, list[int]] = {}
    for position, cam in enumerate(cams):
        scored = None if callable(targets) else cam.target_type  # all methods can share a callable target
        key = (id(cam.model), scored, cam.reshape, called[position].slot, cam.keep_modes)
        groups.setdefault(key, []).append(position)
    results: dict[int, Explanation] = {}
    for positions in groups.values():
        group = [cams[position] for position in positions]
        own = called[positions[0]]
        given = on[id(group[0].model)][1]
        explanations = in_fastest_format(group[0].model, own, partial(_explain_group, group, targets=given))
        results.update(zip(positions, explanations, strict=True))
    return [results[position] for position in range(len(cams))]


def _with_modes(cam: Method, keep_modes: bool) -> Method:
    if cam.keep_modes == keep_modes:
        return cam
    changed = copy.copy(cam)
    changed.keep_modes = keep_modes
    return changed


def with_images_of(cam: Method, inputs: Inputs, targets: Any) -> Inputs:
    """Return the inputs with the image input that the method names, or else the one on which its layers depend."""
    if cam.image_input is not None:
        inputs = with_channels(cam.model, inputs.asked(cam.image_input))
    if len(inputs.image_slots) < 2 or inputs.n == 0:
        return inputs
    layers = _layers_of([cam], inputs, _read_target(cam, targets, inputs.n))[0]
    return image_input_of(cam.model, inputs, layers, cam.image_input)


def _explain_group(cams: list[Method], inputs: Inputs, targets: Any) -> list[Explanation]:
    """Explain a batch with methods that can share one pass."""
    target = _read_target(cams[0], targets, inputs.n)
    if inputs.n == 0:
        return [_explain_nothing(cam, inputs, target) for cam in cams]
    with capture_for(cams, inputs, target) as (captured, layers):
        return [
            assemble(cam, captured, own, *signed_maps(cam, captured, own))
            for cam, own in zip(cams, layers, strict=True)
        ]


@contextmanager
def capture_for(
    cams: list[Method], inputs: Inputs, targets: Any, settled: bool = False
) -> Iterator[tuple[Capture, list[tuple[str, ...]]]]:
    """Yield one capture that serves all the methods, and the names of each method's layers.

    Args:
        cams: methods that can share one pass.
        inputs: the inputs of the model, with at least one sample.
        targets: the targets, as in a call of a method.
        settled: whether an earlier pass determined the target, so that no class is read from the output of this pass.
    """
    first = cams[0]
    target = targets if settled else _read_target(first, targets, inputs.n)
    own = _layers_of(cams, inputs, target)
    needs_at: dict[str, Evidence] = {}
    rules_at: dict[str, set[GradientRule]] = {}
    for cam, layers in zip(cams, own, strict=True):
        for name in layers:
            needs_at[name] = needs_at.get(name, Evidence.NONE) | cam.needs
            if cam.needs & Evidence.RULED:
                rules_at.setdefault(name, set()).add(rule_of(cam))
    request = Request(
        layers={name: module for layers in own for name, module in layers.items()},
        needs_at=needs_at,
        targets=target,
        target_type=first.target_type,
        reshape=first.reshape,
        settled=settled,
        keep_modes=first.keep_modes,
        rules_at=rules_at,
    )
    with capture(first.model, inputs, request) as captured:
        for cam, layers in zip(cams, own, strict=True):
            advise(cam, captured, layers)
        yield captured, [tuple(layers) for layers in own]


def _read_target(cam: Method, targets: Any, n: int) -> Target | None:
    """Return the target that the user means, checked against the number of samples; None = the predicted class."""
    target = resolve_target(targets, cam.target_type, partial(carried_names, cam.model))
    if isinstance(target, ClassTarget):
        target.check_samples(n, or_bag=True)
    return target


def _layers_of(cams: list[Method], inputs: Inputs, target: Target | None) -> list[dict[str, nn.Module]]:
    """Return the layers of each method. An automatic choice is remembered until the size of the images changes."""
    # One exploration serves all methods, even if they choose layers in different ways.
    first = cams[0]
    candidates = cache(partial(layer_candidates, first.model, inputs, target, first.target_type, first.keep_modes))
    # Other targets than classes may depend on other layers, so layers are not remembered from or for them.
    is_class = target is None or isinstance(target, ClassTarget)
    own: list[dict[str, nn.Module]] = []
    for cam in cams:
        if cam.target_layers is not None and not cam.layer_choice.is_fixed:
            own.append(cam.target_layers)
            continue
        known = cam.chosen_layers.get(inputs.size, {}) if is_class else {}
        if not known or not all(_is_there(cam.model, name, module) for name, module in known.items()):
            known = choose_among(candidates, cam.model, inputs.size, cam.layer_choice)
            # replace the mapping as a whole, because other threads may be reading it
            cam.chosen_layers = {inputs.size if is_class else (): known}
        own.append(known)
    return own


def _is_there(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Whether a layer that was chosen earlier still belongs to the model. Entries that are not modules always do."""
    try:
        return model.get_submodule(split_name(model, name).path) is module
    except AttributeError:
        return True


def _explain_nothing(cam: Method, inputs: Inputs, target: Target | None) -> Explanation:
    """Return the explanation of an empty batch."""
    classes = getattr(target, "classes", None)
    leading = tuple(classes.shape) if isinstance(classes, Tensor) else (0,)
    empty = inputs.images.new_zeros(leading)
    return Explanation(
        heatmaps=inputs.images.new_zeros((*leading, *inputs.size), dtype=torch.float32),
        saliency={},
        targets=empty.long() if target is None or isinstance(target, ClassTarget) else None,
        scores=empty,
        output=None,
        layers=tuple(cam.target_layers or ()),
        is_empty=empty.bool(),
        gradient_rule=rule_of(cam),
    )
