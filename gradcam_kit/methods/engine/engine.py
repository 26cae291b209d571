"""One pass for several methods: which of them can share it, at which layers, and what each gets of it."""

from __future__ import annotations

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
    in_fastest_format,
    layer_candidates,
    read_inputs,
    resolve_target,
)
from gradcam_kit.errors import InputError, kind_of
from gradcam_kit.methods.base import METHODS, BaseCAM
from gradcam_kit.methods.engine.assembly import assemble, signed_maps
from gradcam_kit.methods.engine.explanation import Explanation
from gradcam_kit.types import Evidence, Images, Target


def single_pass_methods() -> list[str]:
    """The methods of `METHODS` that need no passes but the one that all can share."""
    again = Evidence.RESCORE | Evidence.REPLAY | Evidence.PROBE
    return [name for name, method in METHODS.items() if not method.needs & again]


def explain_all(
    methods: Iterable[BaseCAM], images: Images, targets: Any = None, **forward_kwargs: Any
) -> list[Float[Tensor, "n *mt"]]:
    """Heatmaps of several methods from one capture: as if each was called, at the price of about one.

    Methods on the same model that score classes in the same way (all but Finer-CAM, Shapley-CAM and their like) share
    one forward and one backward pass, whatever their layers are.

    Args:
        methods: CAM objects.
        images: as in calling one of them.
        targets: as in calling one of them.
        forward_kwargs: passed on to the model.

    Returns:
        One tensor of heatmaps per method, in their order.
    """
    return [explanation.heatmaps for explanation in _explain(methods, images, targets, forward_kwargs)]


def explain_many(
    cams: Iterable[BaseCAM], images: Images, targets: Any = None, **forward_kwargs: Any
) -> list[Explanation]:
    """`explain_all` with everything that the passes produced."""
    return _explain(cams, images, targets, forward_kwargs)


@torch.inference_mode(False)
def _explain(cams: Iterable[Any], images: Images, targets: Any, forward_kwargs: dict[str, Any]) -> list[Explanation]:
    cams = list(cams)
    for position, cam in enumerate(cams):
        if not isinstance(cam, BaseCAM):
            raise InputError(f"methods[{position}] is {kind_of(cam)}; expected CAM objects such as GradCAM(model)")
    inputs = read_inputs(images, forward_kwargs, *(cam.model for cam in cams))
    groups: dict[Any, list[int]] = {}
    for position, cam in enumerate(cams):
        scored = None if callable(targets) else cam.target_type  # a callable is the same target for all methods
        groups.setdefault((id(cam.model), scored, cam.reshape), []).append(position)
    results: dict[int, Explanation] = {}
    for positions in groups.values():
        group = [cams[position] for position in positions]
        explanations = in_fastest_format(group[0].model, inputs, partial(_explain_group, group, targets=targets))
        results.update(zip(positions, explanations, strict=True))
    return [results[position] for position in range(len(cams))]


def _explain_group(cams: list[BaseCAM], inputs: Inputs, targets: Any) -> list[Explanation]:
    """Explain with methods that can share one pass; the model's part behind the layers only runs if it matters."""
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
    cams: list[BaseCAM], inputs: Inputs, targets: Any, settled: bool = False
) -> Iterator[tuple[Capture, list[tuple[str, ...]]]]:
    """One pass that serves all of these methods, and the names of each one's layers.

    Args:
        cams: methods that can share one pass.
        inputs: at least one sample.
        targets: as in calling a method.
        settled: the target is that of an earlier pass, and takes nothing from this one's output.
    """
    first = cams[0]
    target = targets if settled else _read_target(first, targets, inputs.n)
    own = _layers_of(cams, inputs, target)
    needs_at: dict[str, Evidence] = {}
    for cam, layers in zip(cams, own, strict=True):
        for name in layers:
            needs_at[name] = needs_at.get(name, Evidence.NONE) | cam.needs
    request = Request(
        layers={name: module for layers in own for name, module in layers.items()},
        needs_at=needs_at,
        targets=target,
        target_type=first.target_type,
        reshape=first.reshape,
        settled=settled,
    )
    with capture(first.model, inputs, request) as captured:
        yield captured, [tuple(layers) for layers in own]


def _read_target(cam: BaseCAM, targets: Any, n: int) -> Target | None:
    target = resolve_target(targets, cam.target_type)
    if isinstance(target, ClassTarget):
        target.check_samples(n)
    return target


def _layers_of(cams: list[BaseCAM], inputs: Inputs, target: Target | None) -> list[dict[str, nn.Module]]:
    """The layers of each method, chosen where it leaves them open and meets this size for the first time."""
    # One exploring pass serves every kind of choice.
    candidates = cache(partial(layer_candidates, cams[0].model, inputs, target, cams[0].target_type))
    own: list[dict[str, nn.Module]] = []
    for cam in cams:
        if cam.target_layers is not None and not cam.layer_choice.is_fixed:
            own.append(cam.target_layers)
            continue
        # Other targets than classes may depend on other layers, so for them nothing is remembered.
        known = cam.chosen_layers.get(inputs.size, {}) if target is None or isinstance(target, ClassTarget) else {}
        if not known or not all(_is_there(cam.model, name, module) for name, module in known.items()):
            known = choose_among(candidates, cam.model, inputs.size, cam.layer_choice)
            cam.chosen_layers = {inputs.size: known}  # replaced as a whole: other threads may read it meanwhile
        own.append(known)
    return own


def _is_there(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Whether a layer that was chosen earlier is still the model's; what has no name of its own always is."""
    try:
        return model.get_submodule(name) is module
    except AttributeError:
        return True


def _explain_nothing(cam: BaseCAM, inputs: Inputs, target: Target | None) -> Explanation:
    """The explanation of an empty batch."""
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
    )
